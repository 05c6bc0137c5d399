"""Which tokens a request has seen and how often it produced each, for the penalties. Holds only requests that have some.

Lists of distinct tokens, not tables over the vocabulary: a step touches the few hundred logits that can change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_WIDTH_STEP = 256


@dataclass(frozen=True, slots=True)
class Penalties:
    """The penalised rows of one batch. row [n] int64 in the batch, slot [n] int64 in the history, the rest [n, 1] float32."""

    row: Tensor
    slot: Tensor
    host_slot: NDArray[np.int64]
    repetition: Tensor
    frequency: Tensor
    presence: Tensor


class TokenHistory:
    """tokens [slots, width] int64 distinct tokens of prompt and output; counts [slots, width] float32 in the output.

    The unused end of a row repeats its first token, so that a step can treat rows of different lengths alike: writing the
    same value twice does no harm.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._tokens = torch.zeros((1, _WIDTH_STEP), dtype=torch.int64, device=device)
        self._counts = torch.zeros((1, _WIDTH_STEP), dtype=torch.float32, device=device)
        self._used = torch.zeros(1, dtype=torch.int64, device=device)
        # The host's upper bound of _used, because reading _used would wait for the device.
        self._bound = np.zeros(1, dtype=np.int64)
        self._free = [0]

    def add(self, prompt: NDArray[np.int64], output: NDArray[np.int64]) -> int:
        """Take a slot for a request with at least one prompt token; returns it."""
        tokens, where = np.unique(np.concatenate((prompt, output)), return_inverse=True)
        counts = np.bincount(where[len(prompt) :], minlength=len(tokens))
        if not self._free:
            self._grow_slots()
        slot, used = self._free.pop(), len(tokens)
        self._bound[slot] = used
        self._grow_width(used + 1)
        for table, values in ((self._tokens, tokens), (self._counts, counts)):
            table[slot] = int(values[0])
            table[slot, :used] = torch.from_numpy(values).to(table)
        self._used[slot] = used
        return slot

    def release(self, slot: int) -> None:
        self._free.append(slot)

    def penalise(self, x: Tensor, penalties: Penalties) -> None:
        """Change x [R, V] float32 in place: repetition over prompt and output, then frequency and presence over the output.

        x = x / repetition where positive, else x * repetition (CTRL, Keskar et al. 2019);
        x -= frequency * count + presence * (count > 0) (OpenAI).
        """
        tokens, counts = self._seen(penalties)
        row = penalties.row.unsqueeze(1)
        values = x[row, tokens]
        values = torch.where(values > 0, values / penalties.repetition, values * penalties.repetition)
        values -= penalties.frequency * counts + penalties.presence * (counts > 0)
        x[row, tokens] = values

    def record(self, penalties: Penalties, token_ids: Tensor) -> None:
        """token_ids [R] int64: what each row of the batch has just produced."""
        self._bound[penalties.host_slot] = np.minimum(self._bound[penalties.host_slot] + 1, self._vocab_size)
        self._grow_width(int(self._bound[penalties.host_slot].max()) + 1)
        slot, token = penalties.slot, token_ids[penalties.row]
        tokens, counts = self._seen(penalties)
        hit = tokens == token.unsqueeze(1)
        self._counts[slot, : counts.shape[1]] = counts + hit
        new, end = ~hit.any(1), self._used[slot]
        self._tokens[slot, end] = torch.where(new, token, self._tokens[slot, end])
        self._counts[slot, end] = torch.where(new, 1.0, self._counts[slot, end])
        self._used[slot] = end + new

    def _seen(self, penalties: Penalties) -> tuple[Tensor, Tensor]:
        """Tokens and counts [n, w] of the penalised rows, the unused end filled with the first token and its count."""
        slot, width = penalties.slot, int(self._bound[penalties.host_slot].max()) + 1
        counts = self._counts[slot, :width]
        used = torch.arange(width, device=slot.device) < self._used[slot].unsqueeze(1)
        return self._tokens[slot, :width], torch.where(used, counts, counts[:, :1])

    def _grow_slots(self) -> None:
        slots = len(self._bound)
        self._tokens, self._counts = self._tokens.repeat(2, 1), self._counts.repeat(2, 1)
        self._used, self._bound = self._used.repeat(2), np.tile(self._bound, 2)
        self._free.extend(range(2 * slots - 1, slots - 1, -1))

    def _grow_width(self, width: int) -> None:
        missing = width - self._tokens.shape[1]
        if missing > 0:
            missing = max(-(-missing // _WIDTH_STEP) * _WIDTH_STEP, self._tokens.shape[1])
            self._tokens = torch.cat((self._tokens, self._tokens[:, :1].expand(-1, missing)), dim=1)
            self._counts = torch.cat((self._counts, self._counts[:, :1].expand(-1, missing)), dim=1)
