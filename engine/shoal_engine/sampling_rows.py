"""Each request's sampling state: one row of numbers that the host keeps, written when the request joins and never per step.

Decides nothing and holds no tensor of a batch; `SamplingBatch` gathers rows into those.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shoal_engine.errors import InvalidRequest
from shoal_engine.logit_edits import Ids, RowEdits
from shoal_engine.noise import key_of
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.token_history import TokenHistory

GREEDY, PLAIN, TRUNCATED = 0, 1, 2
MIN_TEMPERATURE = 1e-5  # below it float32 cannot tell the draw from the maximum
NO_SLOT = -1

_ROW = np.dtype(
    [
        ("kind", np.int8),
        ("key", np.uint64),
        ("position", np.int64),  # output tokens so far
        ("min_tokens", np.int64),
        ("temperature", np.float32),
        ("min_p", np.float32),
        ("top_k", np.int64),  # vocabulary size = off
        ("top_p", np.float64),  # inf = off
        ("repetition", np.float32),
        ("frequency", np.float32),
        ("presence", np.float32),
        ("slot", np.int64),  # in the token history; NO_SLOT = no penalties
        ("num_logprobs", np.int64),  # -1 = none asked for
    ]
)


class SamplingRows:
    """values [capacity] of _ROW; index maps a request id to its row; edits [capacity] aligned with values."""

    def __init__(self, vocab_size: int, device: torch.device, seed: int | None) -> None:
        self.index: dict[str, int] = {}
        self.values = np.zeros(1, dtype=_ROW)
        self.edits: list[RowEdits | None] = [None]
        self.history = TokenHistory(vocab_size, device)
        self._vocab_size = vocab_size
        self._free = [0]
        self._seeds = random.Random(seed)
        # Prompt and output of penalised rows before their first batch.
        self._unseen: dict[int, tuple[Ids, Ids]] = {}

    def add(
        self,
        request_id: str,
        params: SamplingParams,
        prompt: Sequence[int],
        output: Sequence[int],
        eos_ids: Collection[int],
    ) -> None:
        """Write a request's row. Of a known id it renews the row and keeps the seed that was drawn for it."""
        edits = row_edits(params, eos_ids, self._vocab_size)
        seen = None
        if params.needs_penalties:
            seen = _ids("prompt", prompt, self._vocab_size), _ids("prompt", output, self._vocab_size)
            if not len(prompt):
                raise InvalidRequest("the prompt must have at least one token", param="prompt")
        known = self.index.get(request_id)
        if known is None:
            key = key_of(self._seeds.getrandbits(64) if params.seed is None else params.seed)
        else:
            key = int(self.values["key"][known])
            self.remove(request_id)
        row = self._take_row()
        self.index[request_id] = row
        self.edits[row] = edits
        if seen is not None:
            self._unseen[row] = seen
        self.values[row] = self._numbers(params, key, len(output))

    def remove(self, request_id: str) -> None:
        row = self.index.pop(request_id, None)
        if row is not None:
            slot = int(self.values["slot"][row])
            if slot != NO_SLOT:
                self.history.release(slot)
            self._unseen.pop(row, None)
            self._free.append(row)

    def gather(self, request_ids: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Row numbers and values of a batch. Only now does a penalised request take a slot: one that waits costs little."""
        rows = np.array([self.index[request_id] for request_id in request_ids], dtype=np.int64)
        for row in self._unseen.keys() & set(rows.tolist()) if self._unseen else ():
            self.values["slot"][row] = self.history.add(*self._unseen.pop(row))
        return rows, self.values[rows]

    def _numbers(self, params: SamplingParams, key: int, position: int) -> tuple[object, ...]:
        top_k = params.top_k if 0 < params.top_k < self._vocab_size else self._vocab_size
        truncates = top_k < self._vocab_size or params.top_p < 1.0 or params.min_p > 0.0
        kind = GREEDY if params.greedy or top_k == 1 else TRUNCATED if truncates else PLAIN
        return (
            kind,
            key,
            position,
            params.min_tokens,
            max(params.temperature, MIN_TEMPERATURE),
            params.min_p,
            top_k,
            params.top_p if params.top_p < 1.0 else np.inf,
            params.repetition_penalty,
            params.frequency_penalty,
            params.presence_penalty,
            NO_SLOT,
            -1 if params.logprobs is None else params.logprobs,
        )

    def _take_row(self) -> int:
        if not self._free:
            rows = len(self.values)
            self.values = np.concatenate((self.values, np.zeros_like(self.values)))
            self.edits += [None] * rows
            self._free = list(range(2 * rows - 1, rows - 1, -1))
        return self._free.pop()


def row_edits(params: SamplingParams, eos_ids: Collection[int], vocab_size: int) -> RowEdits | None:
    """What the request changes in its logits but for penalties. Raises InvalidRequest that names the field.

    A token id outside the vocabulary is found here, before it could touch the logits of a neighbour in the batch.
    """
    bias = params.logit_bias or {}
    biased = _ids("logit_bias", bias, vocab_size)
    stops = _ids("stop_token_ids", params.stop_token_ids, vocab_size)
    allowed = None
    if params.allowed_token_ids is not None:
        allowed = np.unique(_ids("allowed_token_ids", params.allowed_token_ids, vocab_size))
        if not allowed.size:
            raise InvalidRequest(
                "allowed_token_ids must name at least one token, or be left out", param="allowed_token_ids"
            )
    ending = np.zeros(0, dtype=np.int64)
    if params.min_tokens:
        # An EOS id beyond the logits is a slip of the checkpoint, not of the request; it can never be drawn.
        ending = np.union1d(stops, [token for token in eos_ids if token < vocab_size]).astype(np.int64)
        left = vocab_size - len(ending) if allowed is None else len(np.setdiff1d(allowed, ending))
        if not left:
            raise InvalidRequest(
                "min_tokens rules out EOS and stop tokens, and allowed_token_ids leaves nothing else",
                param="min_tokens",
            )
    if allowed is None and not ending.size and not biased.size:
        return None
    return RowEdits(allowed, ending, biased, np.fromiter(bias.values(), np.float32, len(bias)))


def _ids(field: str, token_ids: Iterable[int], vocab_size: int) -> Ids:
    try:
        ids = np.array(list(token_ids), dtype=np.int64)
    except (OverflowError, ValueError, TypeError) as error:
        raise InvalidRequest(f"{field} must hold token ids below {vocab_size}", param=field) from error
    if ids.size and not (int(ids.min()) >= 0 and int(ids.max()) < vocab_size):
        wrong = int(ids[(ids < 0) | (ids >= vocab_size)][0])
        raise InvalidRequest(
            f"{field} holds token id {wrong}; this model's ids go from 0 to {vocab_size - 1}", param=field
        )
    return ids
