"""What requests fix in advance about their logits: allowed ids, no end below min_tokens, bias, in this order.

Gathered once for a batch into flat positions, so that a step is a few indexed writes whatever the number of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int64]
_NO_IDS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class RowEdits:
    """One request's part. allowed None = every token; ending = EOS and stop ids, kept out below min_tokens."""

    allowed: Ids | None
    ending: Ids
    biased: Ids
    bias: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LogitEdits:
    """Of R rows. allowed_rows [n] are row numbers; allowed, ending, biased are flat positions row * V + token id."""

    allowed_rows: Tensor
    allowed: Tensor
    ending: Tensor
    biased: Tensor
    bias: Tensor

    def apply(self, x: Tensor) -> None:
        """Change x [R, V] float32, contiguous, in place. An excluded token becomes -Inf."""
        flat = x.view(-1)
        if self.allowed_rows.numel():
            allowed = flat[self.allowed]
            x[self.allowed_rows] = -torch.inf
            flat[self.allowed] = allowed
        if self.ending.numel():
            flat[self.ending] = -torch.inf
        if self.biased.numel():
            flat[self.biased] += self.bias


def gather_edits(
    edits: Sequence[RowEdits | None],
    under_min_tokens: NDArray[np.bool_],
    vocab_size: int,
    device: torch.device,
) -> LogitEdits | None:
    """The edits of a batch, one entry per row; None when no row has any."""
    allowed_rows: list[int] = []
    allowed, ending, biased, bias = [_NO_IDS], [_NO_IDS], [_NO_IDS], [np.zeros(0, dtype=np.float32)]
    for row, edit in enumerate(edits):
        if edit is None:
            continue
        start = row * vocab_size
        if edit.allowed is not None:
            allowed_rows.append(row)
            allowed.append(start + edit.allowed)
        if under_min_tokens[row]:
            ending.append(start + edit.ending)
        if edit.biased.size:
            biased.append(start + edit.biased)
            bias.append(edit.bias)
    if len(allowed) + len(ending) + len(biased) == 3:
        return None
    rows = np.array(allowed_rows, dtype=np.int64)
    positions = (rows, *(np.concatenate(parts) for parts in (allowed, ending, biased)))
    allowed_at, allowed_flat, ending_flat, biased_flat = (
        torch.from_numpy(ids).to(device) for ids in positions
    )
    added = torch.from_numpy(np.concatenate(bias)).to(device)
    return LogitEdits(allowed_at, allowed_flat, ending_flat, biased_flat, added)
