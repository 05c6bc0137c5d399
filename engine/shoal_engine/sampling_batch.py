"""One composition of requests, gathered for the device: which rows are greedy, drawn, truncated, edited or ask for logprobs.

Built when the composition changes and reused while it does not, so a steady decode costs no work per request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal_engine.draws import Truncation, draw, draw_truncated, greedy
from shoal_engine.logit_edits import LogitEdits, RowEdits, gather_edits
from shoal_engine.sampling_rows import GREEDY, NO_SLOT, PLAIN, TRUNCATED, SamplingRows
from shoal_engine.token_history import Penalties, TokenHistory
from shoal_engine.working_set import rows_at_a_time

Rows = Tensor | slice  # a slice where that avoids a copy
Values = NDArray[Any]  # of sampling_rows


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of a part that choose in the same way. temperature [n, 1] float32, None = all 1."""

    kind: int
    rows: Rows
    temperature: Tensor | None = None
    cut: Truncation | None = None

    def choose(self, x: Tensor, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [n, V] of these rows, uniform [n, 1] float64 (None only for greedy) -> token ids [n], ok [n]."""
        if uniform is None or self.kind == GREEDY:
            return greedy(x)
        if self.cut is None:
            return draw(x.float(), self.temperature, uniform)
        return draw_truncated(x.float(), self.temperature, self.cut, uniform)


@dataclass(frozen=True, slots=True)
class Part:
    """Neighbouring rows of the batch; row numbers inside count from its start."""

    span: slice
    edits: LogitEdits | None
    penalties: Penalties | None
    groups: tuple[Group, ...]

    def choose(self, logits: Tensor, uniform: Tensor | None, history: TokenHistory) -> tuple[Tensor, Tensor]:
        """logits [n, V] of the part, never written to; uniform [n, 1] float64 -> token ids [n], ok [n]."""
        if self.edits is None and self.penalties is None:
            return self._choose(logits, uniform)
        edited = logits.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if self.edits is not None:
            self.edits.apply(edited)
        if self.penalties is not None:
            history.penalise(edited, self.penalties)
        token_ids, ok = self._choose(edited, uniform)
        return token_ids, ok & logits.amax(1).isfinite()  # an edit may have covered what was not

    def _choose(self, x: Tensor, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
        if len(self.groups) == 1:
            return self.groups[0].choose(x, uniform)
        token_ids = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)
        ok = torch.empty(x.shape[0], dtype=torch.bool, device=x.device)
        for group in self.groups:
            own = None if uniform is None else uniform[group.rows]
            token_ids[group.rows], ok[group.rows] = group.choose(x[group.rows], own)
        return token_ids, ok


class SamplingBatch:
    """ids in batch order, rows [R] their sampling rows, steps_left: uses until a request reaches its min_tokens."""

    def __init__(
        self, ids: Sequence[str], state: SamplingRows, vocab_size: int, device: torch.device
    ) -> None:
        self.ids = list(ids)
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("a request may have one row in a batch")
        self.rows, values = state.gather(ids)
        self.keys: NDArray[np.uint64] = values["key"]
        remaining = values["min_tokens"] - values["position"]
        self.steps_left = int(remaining.min(initial=_FOREVER, where=remaining > 0))
        self.draws = bool((values["kind"] != GREEDY).any())
        wants = np.flatnonzero(values["num_logprobs"] >= 0)
        self.num_logprobs: list[int] = values["num_logprobs"][wants].tolist()
        self.logprob_rows = torch.from_numpy(wants).to(device)
        self.parts = _parts(values, [state.edits[row] for row in self.rows], vocab_size, device)


_FOREVER = 2**62


def _parts(
    values: Values, edits: Sequence[RowEdits | None], vocab_size: int, device: torch.device
) -> list[Part]:
    plain_greedy = (
        not any(edits) and bool((values["kind"] == GREEDY).all()) and bool((values["slot"] == NO_SLOT).all())
    )
    step = len(values) if plain_greedy else rows_at_a_time(vocab_size, device)
    spans = [
        slice(start, min(start + step, len(values))) for start in range(0, max(len(values), 1), max(step, 1))
    ]
    return [_part(span, values[span], edits[span], vocab_size, device) for span in spans]


def _part(
    span: slice, values: Values, edits: Sequence[RowEdits | None], vocab_size: int, device: torch.device
) -> Part:
    under = values["position"] < values["min_tokens"]
    own = gather_edits(edits, under, vocab_size, device)
    groups = (_group(values, kind, vocab_size, device) for kind in (GREEDY, PLAIN, TRUNCATED))
    return Part(
        span, own, penalties_of(values, device), tuple(group for group in groups if group is not None)
    )


def _group(values: Values, kind: int, vocab_size: int, device: torch.device) -> Group | None:
    rows = _rows(values["kind"] == kind, device)
    if rows is None or kind == GREEDY:
        return None if rows is None else Group(GREEDY, rows)
    values = values[values["kind"] == kind]
    temperature = None if (values["temperature"] == 1.0).all() else _column(values["temperature"], device)
    if kind == PLAIN:
        return Group(PLAIN, rows, temperature)
    nucleus_only = (values["top_k"] == vocab_size) & (values["min_p"] == 0.0) & np.isfinite(values["top_p"])
    cut = Truncation(
        min_p=_column(values["min_p"], device),
        top_k=_column(values["top_k"], device),
        top_p=_column(values["top_p"], device),
        nucleus_only=_rows(nucleus_only, device),
        max_top_k=int(values["top_k"].max()),
        any_top_p=bool(np.isfinite(values["top_p"]).any()),
    )
    return Group(TRUNCATED, rows, temperature, cut)


def penalties_of(values: Values, device: torch.device) -> Penalties | None:
    """The rows of a batch, or of a part of it, that have penalties; None when none has."""
    rows = np.flatnonzero(values["slot"] != NO_SLOT)
    if not rows.size:
        return None
    values = values[rows]
    return Penalties(
        torch.from_numpy(rows).to(device),
        torch.from_numpy(values["slot"].copy()).to(device),
        values["slot"].copy(),
        _column(values["repetition"], device),
        _column(values["frequency"], device),
        _column(values["presence"], device),
    )


def _rows(mask: NDArray[np.bool_], device: torch.device) -> Rows | None:
    if not mask.any():
        return None
    return slice(None) if mask.all() else torch.from_numpy(np.flatnonzero(mask)).to(device)


def _column(values: Values, device: torch.device) -> Tensor:
    return torch.from_numpy(values.copy()).to(device).unsqueeze(1)
