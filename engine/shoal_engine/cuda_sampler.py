"""The sampler on a GPU: edits and penalties by torch, the choice by the Triton kernels, and nothing that waits for the GPU.

Same requests, same meaning and same seeds as `sampler.Sampler`. What a row asks for is sent with every step, in one copy:
cheaper than to keep it there and to keep it in step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal_engine.kernels.triton_sampling import RowParameters, SamplingSpace, sample
from shoal_engine.landing import Arrival, Landing
from shoal_engine.logit_edits import LogitEdits, gather_edits
from shoal_engine.logprobs import RankedLogprobs, ranked_logprobs
from shoal_engine.plain_draws import PlainDraws
from shoal_engine.sampler import Sampled, Sampler
from shoal_engine.sampling_batch import penalties_of
from shoal_engine.sampling_rows import GREEDY, TRUNCATED
from shoal_engine.staging import Staging
from shoal_engine.token_history import Penalties

Values = NDArray[Any]  # of sampling_rows


@dataclass(frozen=True, slots=True)
class Download(Sampled):
    """What one call chose, on its way to pinned memory; ranked: where its logprobs arrive, if any."""

    arrival: Arrival
    ranked: tuple[Tensor, ...]

    def on_host(self) -> Sampled:
        self.arrival.arrived.synchronize()
        count = len(self.token_ids)
        logprobs = RankedLogprobs(*self.ranked) if self.ranked else None
        ok = self.arrival.ok[:count].bool()
        return Sampled(self.arrival.token_ids[:count], ok, logprobs, self._logprob_rows, self._num_logprobs)


@dataclass(slots=True)
class _Composition:
    """What stays while the same requests decode: their rows, what they ask for, their edits and penalties on the device."""

    ids: list[str]
    rows: NDArray[np.int64]
    steps_left: int  # until a request reaches its min_tokens
    edits: LogitEdits | None
    penalties: Penalties | None
    truncated: bool
    logprob_rows: NDArray[np.int64]
    num_logprobs: list[int]
    draws: PlainDraws  # `drawn` counts on with every step

    @property
    def plain(self) -> bool:
        return self.edits is None and self.penalties is None and not self.truncated and not self.num_logprobs


class CudaSampler(Sampler):
    """One stream, one call after another: results of a call are overwritten by the next, but for what it sent to the host."""

    def __init__(self, vocab_size: int, device: torch.device, seed: int | None, space: SamplingSpace) -> None:
        """space: where results are left, for the steps' graphs to find them."""
        super().__init__(vocab_size, device, seed)
        max_rows = len(space.token_ids)
        self._asked = Staging(
            {
                "temperature": (np.float32, max_rows),
                "min_p": (np.float32, max_rows),
                "top_k": (np.int32, max_rows),
                "top_p": (np.float64, max_rows),
                "keys": (np.int64, max_rows),
                "positions": (np.int64, max_rows),
            },
            device,
        )
        self._parameters = RowParameters(**self._asked.device)
        self._space = space
        self._landing = Landing(space)
        self._composition: _Composition | None = None

    def ask(self, request_ids: Sequence[str]) -> PlainDraws | None:
        one = self._composed(request_ids)
        return one.draws if one.plain else None

    def take(self, token_ids: Tensor, ok: Tensor) -> Sampled:
        one = self._composition
        assert one is not None
        self._count(one)
        return self._download(token_ids, ok, None, one)

    def sample(self, logits: Tensor, request_ids: Sequence[str]) -> Sampled:
        one = self._composed(request_ids)
        token_ids, ok = self._choose_rows(logits, one, self._state.values[one.rows])
        ranked = None
        if one.num_logprobs:
            wanted = torch.from_numpy(one.logprob_rows).to(self._device, non_blocking=True)
            ranked = ranked_logprobs(logits[wanted], token_ids[wanted])
        if one.penalties is not None:
            self._state.history.record(one.penalties, token_ids)
        self._count(one)
        return self._download(token_ids, ok, ranked, one)

    def _count(self, one: _Composition) -> None:
        self._state.values["position"][one.rows] += 1
        one.draws.drawn[:] += 1
        one.steps_left -= 1

    def _forget_batch_of(self, request_id: str) -> None:
        if request_id in self._state.index:
            self._composition = None

    def _composed(self, request_ids: Sequence[str]) -> _Composition:
        one = self._composition
        if one is not None and one.steps_left > 0 and one.ids == list(request_ids):
            return one
        rows, values = self._state.gather(request_ids)
        remaining = values["min_tokens"] - values["position"]
        edits = [self._state.edits[row] for row in rows.tolist()]
        wants = np.flatnonzero(values["num_logprobs"] >= 0)
        self._composition = one = _Composition(
            ids=list(request_ids),
            rows=rows,
            steps_left=int(remaining.min(initial=2**62, where=remaining > 0)),
            edits=gather_edits(edits, remaining > 0, self._vocab_size, self._device) if any(edits) else None,
            penalties=penalties_of(values, self._device),
            truncated=bool((values["kind"] == TRUNCATED).any()),
            logprob_rows=wants,
            num_logprobs=values["num_logprobs"][wants].tolist(),
            draws=PlainDraws(
                _heat(values), values["key"].view(np.int64), values["position"].astype(np.int64)
            ),
        )
        return one

    def _choose_rows(self, logits: Tensor, one: _Composition, values: Values) -> tuple[Tensor, Tensor]:
        self._ask(values)
        parameters = self._parameters
        if one.edits is None and one.penalties is None:
            return sample(logits, parameters, self._space, one.truncated)
        edited = logits.to(torch.float32, copy=True)
        if one.edits is not None:
            one.edits.apply(edited)
        if one.penalties is not None:
            self._state.history.penalise(edited, one.penalties)
        token_ids, ok = sample(edited, parameters, self._space, one.truncated)
        return token_ids, ok * logits.amax(1).isfinite()  # an edit may have covered what was not

    def _ask(self, values: Values) -> None:
        """Send what these rows ask for."""
        arrays, rows = self._asked.begin(), len(values)
        arrays["temperature"][:rows] = _heat(values)
        arrays["keys"][:rows] = values["key"].view(np.int64)
        for name, field in (
            ("min_p", "min_p"),
            ("top_k", "top_k"),
            ("top_p", "top_p"),
            ("positions", "position"),
        ):
            arrays[name][:rows] = values[field]
        self._asked.send("positions", rows)

    def _download(
        self, token_ids: Tensor, ok: Tensor, ranked: RankedLogprobs | None, one: _Composition
    ) -> Download:
        arrival, found = self._landing.begin(), []
        if ranked is not None:
            parts = (ranked.token_ids, ranked.finite, ranked.chosen, ranked.top_ids, ranked.top)
            for part in parts:
                found.append(torch.empty(part.shape, dtype=part.dtype, pin_memory=True))
                found[-1].copy_(part, non_blocking=True)
        arrival.arrived.record()
        rows = torch.from_numpy(one.logprob_rows)
        return Download(token_ids, ok, ranked, rows, one.num_logprobs, arrival, tuple(found))


def _heat(values: Values) -> NDArray[np.float32]:
    """Temperatures; 0 where a row is greedy."""
    return np.where(values["kind"] == GREEDY, np.float32(0.0), values["temperature"])
