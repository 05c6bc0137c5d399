"""Choose each request's next token from its logits. Keeps what requests asked for; knows no queues, blocks or text.

Order: raw logits (of which logprobs are taken) -> allowed ids -> EOS and stop ids out below min_tokens -> logit_bias ->
repetition, frequency, presence penalties -> greedy, or temperature -> min_p -> top_k -> top_p -> draw.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal_engine.logprobs import RankedLogprobs, ranked_logprobs
from shoal_engine.messages import TokenLogprobs
from shoal_engine.noise import uniforms
from shoal_engine.plain_draws import PlainDraws
from shoal_engine.sampling_batch import SamplingBatch
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.sampling_rows import SamplingRows


@dataclass(frozen=True, slots=True)
class Sampled:
    """What one call chose, on the device of the logits.

    token_ids [R] int64. ok [R] bool: False where a row holds NaN or +Inf or has no token left; its id is 0 and must not be
    used (`logprobs.not_finite` is the error to end that request with).
    """

    token_ids: Tensor
    ok: Tensor
    _logprobs: RankedLogprobs | None
    _logprob_rows: Tensor
    _num_logprobs: list[int]

    def on_host(self) -> Sampled:
        """The same in the host's memory, once the device has come that far."""
        return self

    @property
    def all_ok(self) -> bool:
        return bool(self.ok.all())

    def logprobs(self) -> list[TokenLogprobs | None] | None:
        """Per row of the batch, on the host: None where not asked for or not ok; None at all when no row asked."""
        if self._logprobs is None:
            return None
        result: list[TokenLogprobs | None] = [None] * len(self.token_ids)
        found = self._logprobs.messages(self._num_logprobs)
        for row, ok, message in zip(
            self._logprob_rows.tolist(), self.ok[self._logprob_rows].tolist(), found, strict=True
        ):
            result[row] = message if ok else None
        return result


class Sampler:
    """One per engine. A request is added once, stays through preemption, and is removed when it ends.

    Its random numbers are a function of its seed and its number of output tokens alone, hence the same in any batch.
    `seed` makes the seeds drawn for unseeded requests repeatable, in the order they are added; None = from the system.
    """

    def __init__(self, vocab_size: int, device: torch.device, seed: int | None = None) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._state = SamplingRows(vocab_size, device, seed)
        self._batch: SamplingBatch | None = None

    def add(
        self,
        request_id: str,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        output_token_ids: Sequence[int] = (),
        eos_ids: Collection[int] = (),
    ) -> None:
        """Start a request that has already produced `output_token_ids`. Raises InvalidRequest that names a bad field.

        Adding a known id again replaces its state and keeps its seed: for when sampled tokens were thrown away.
        """
        self._forget_batch_of(request_id)
        self._state.add(request_id, params, prompt_token_ids, output_token_ids, eos_ids)

    def remove(self, request_id: str) -> None:
        """Forget a request. Unknown ids are fine: it may have ended before it was ever sampled."""
        self._forget_batch_of(request_id)
        self._state.remove(request_id)

    def _forget_batch_of(self, request_id: str) -> None:
        if request_id in self._state.index:
            self._batch = None

    def ask(self, request_ids: Sequence[str]) -> PlainDraws | None:
        """What these requests ask for, so that the step itself may draw; None where `sample` must."""
        return None

    def take(self, token_ids: Tensor, ok: Tensor) -> Sampled:
        """What a step has drawn for the requests of the last `ask`. Advances each by a token."""
        raise RuntimeError("nothing was asked for")

    def sample(self, logits: Tensor, request_ids: Sequence[str]) -> Sampled:
        """Row r of logits [R, V], any float dtype, is request_ids[r]'s; they stay as they are. Advances each by a token."""
        if logits.shape != (len(request_ids), self._vocab_size):
            raise ValueError(
                f"expected logits [{len(request_ids)}, {self._vocab_size}], got {list(logits.shape)}"
            )
        batch = self._batch_of(request_ids)
        token_ids, ok = self._choose(batch, logits)
        logprobs = None
        if batch.num_logprobs:
            rows = batch.logprob_rows
            logprobs = ranked_logprobs(logits if len(rows) == len(logits) else logits[rows], token_ids[rows])
        self._advance(batch, token_ids)
        return Sampled(token_ids, ok, logprobs, batch.logprob_rows, batch.num_logprobs)

    def _batch_of(self, request_ids: Sequence[str]) -> SamplingBatch:
        batch = self._batch
        if batch is None or not batch.steps_left or batch.ids != list(request_ids):
            self._batch = batch = SamplingBatch(request_ids, self._state, self._vocab_size, self._device)
        return batch

    def _choose(self, batch: SamplingBatch, logits: Tensor) -> tuple[Tensor, Tensor]:
        uniform = None
        if batch.draws:
            numbers = uniforms(batch.keys, self._state.values["position"][batch.rows])
            uniform = torch.from_numpy(numbers).to(self._device, non_blocking=True).unsqueeze(1)
        history = self._state.history
        if len(batch.parts) == 1:
            return batch.parts[0].choose(logits, uniform, history)
        chosen = [
            part.choose(logits[part.span], None if uniform is None else uniform[part.span], history)
            for part in batch.parts
        ]
        return torch.cat([ids for ids, _ in chosen]), torch.cat([ok for _, ok in chosen])

    def _advance(self, batch: SamplingBatch, token_ids: Tensor) -> None:
        for part in batch.parts:
            if part.penalties is not None:
                self._state.history.record(part.penalties, token_ids[part.span])
        self._state.values["position"][batch.rows] += 1
        batch.steps_left -= 1
