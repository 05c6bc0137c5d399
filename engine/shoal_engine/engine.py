"""One step after another: schedule, run, sample, commit, emit. Runs in whatever process owns it; knows no sockets.

A bad request ends alone. A row without a usable logit ends with an error and its blocks leave the prefix cache; a step
that fails is rolled back and tried again smaller, and only if it fails again is its largest chunk given up.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shoal_api.options import ModelOptions
from shoal_engine.config import ModelConfig
from shoal_engine.errors import BadNumbers, EngineError, InvalidRequest, is_device_error
from shoal_engine.logprobs import not_finite
from shoal_engine.messages import (
    Loading,
    Output,
    Ready,
    Stats,
    Submit,
    TagChanges,
    TokenLogprobs,
    failed_output,
)
from shoal_engine.plan import Chunk, Committed, Plan
from shoal_engine.prompt_scores import PromptScores
from shoal_engine.request import Request
from shoal_engine.runner import Runner
from shoal_engine.sampler import Sampled, Sampler
from shoal_engine.scheduler import Scheduler

log = logging.getLogger(__name__)

MAX_BROKEN_IN_A_ROW = 8


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that the device has been given. `sampled` has a row for each of `sampling`; None when there is none."""

    plan: Plan
    sampling: list[Chunk]
    sampled: Sampled | None


class Engine:
    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        sampler: Sampler,
        config: ModelConfig,
        model_path: Path,
        ready: Ready,
        steps_ahead: int = 0,
    ) -> None:
        """steps_ahead: steps that may be under way before the results of the oldest are read; 0 on a CPU, 1 on a GPU."""
        self.config = config
        self.model_path = model_path
        self.ready = ready
        self.runner = runner
        self.scheduler = scheduler
        self.sampler = sampler
        self._steps_ahead = steps_ahead
        self._flights: deque[Flight] = deque()
        self._prompt_scores = PromptScores(runner)
        self._full_budget = scheduler.limits.max_num_batched_tokens
        self._queued_s: dict[str, float] = {}
        self._num_failed_in_a_row = 0
        self._broken_in_a_row = 0

    @classmethod
    def load(cls, options: ModelOptions, progress: Callable[[Loading], None] = lambda _: None) -> Engine:
        """Load a model and generate one token with it. Raises ModelLoadError that says what to change."""
        from shoal_engine.loading import load_engine

        return load_engine(options, progress)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def prepare(self) -> bool:
        """Spend idle time, some tens of milliseconds, on what makes later steps faster; False when nothing is left."""
        return not self.has_work and self.runner.prepare()

    def stats(self) -> Stats:
        """Gauges now and counters since the start."""
        return self.scheduler.stats()

    def tag_changes(self) -> TagChanges | None:
        """What of the routers' tags has entered or left the prefix cache since the last call."""
        return self.scheduler.pool.tags.take_changes()

    def add(self, submit: Submit) -> None:
        """Queue a request of n=1. Raises EngineError: it is malformed, can never fit, or the queue is full."""
        _check_ids("prompt", submit.prompt_token_ids, self.config.vocab_size)
        _check_ids("output", submit.output_token_ids, self.config.vocab_size)
        request = Request.from_submit(submit, time.monotonic())
        self.scheduler.add(request)
        try:
            self.sampler.add(
                submit.id,
                submit.params,
                submit.prompt_token_ids,
                submit.output_token_ids,
                self.config.eos_token_ids,
            )
        except EngineError:
            self.scheduler.abort(submit.id)
            raise

    def abort(self, ids: Sequence[str]) -> None:
        """End requests in any state, at once and silently. Unknown ids are fine: they may just have ended."""
        for request_id in ids:
            request = self.scheduler.abort(request_id)
            if request is not None:
                self._forget([request])

    def step(self) -> list[Output]:
        """Start one step and settle the oldest; returns what that did for each request that it advanced or ended.

        A device with `steps_ahead` computes while the host settles what came before.
        """
        plan = self.scheduler.schedule()
        self._restart(plan.preempted)
        outputs = self._ended(plan.failed)
        if plan.chunks:
            try:
                self._flights.append(self._launch(plan))
            except Exception as error:
                while self._flights:
                    outputs += self._settle()
                return outputs + self._roll_back(plan, error)
        if len(self._flights) > (self._steps_ahead if plan.chunks else 0):
            outputs += self._settle()
        return outputs

    def _launch(self, plan: Plan) -> Flight:
        sampling = [chunk for chunk in plan.chunks if chunk.samples]
        ids = [chunk.request.id for chunk in sampling]
        only_decodes = plan.num_decodes == len(plan.chunks)
        computed = self.runner.run(plan, self.sampler.ask(ids) if only_decodes else None)
        self._prompt_scores.score(plan, computed.hidden)
        for chunk in plan.chunks[plan.num_decodes :]:
            self._queued_s.setdefault(chunk.request.id, plan.time_s - chunk.request.arrival)
        if not sampling:
            return Flight(plan, sampling, None)
        if computed.chosen is None:
            sampled = self.sampler.sample(self.runner.logits(computed.sampling), ids)
        else:
            sampled = self.sampler.take(*computed.chosen)
        self.runner.keep(ids, sampled.token_ids)
        return Flight(plan, sampling, sampled)

    def _settle(self) -> list[Output]:
        """Apply the results of the oldest step in flight."""
        flight = self._flights.popleft()
        try:
            outputs = self._commit(flight)
        except Exception as error:
            return self._roll_back(flight.plan, error)
        self._recovered()
        return outputs

    def _commit(self, flight: Flight) -> list[Output]:
        plan, sampling = flight.plan, flight.sampling
        if flight.sampled is None:
            self.scheduler.commit(plan, [])
            return []
        sampled = flight.sampled.on_host()
        token_ids = sampled.token_ids.tolist()
        broken = {}
        if not sampled.all_ok:
            good = sampled.ok.tolist()
            broken = {c.request.id: not_finite() for c, ok in zip(sampling, good, strict=True) if not ok}
        self._watch_numbers(len(broken), len(sampling))
        first = {c.request.id for c in sampling if c.request.awaits_first_token}
        committed = self.scheduler.commit(plan, token_ids, broken)
        return self._emit(committed, sampling, first, sampled)

    def _watch_numbers(self, num_broken: int, num_sampled: int) -> None:
        """One request can cause its own NaN; many in a row with not one good row between them are the model's."""
        self._broken_in_a_row = self._broken_in_a_row + num_broken if num_broken == num_sampled else 0
        if self._broken_in_a_row >= MAX_BROKEN_IN_A_ROW:
            raise BadNumbers(
                f"the model computed NaN for {self._broken_in_a_row} requests in a row and for none a usable token;"
                " check the checkpoint, and --dtype float32 if it was made for a wider range than this one"
            )

    def _emit(
        self, committed: Committed, sampling: list[Chunk], first: set[str], sampled: Sampled
    ) -> list[Output]:
        """One output for each request that gained a token or ended."""
        by_row = sampled.logprobs()
        logprobs: dict[str, TokenLogprobs | None] = (
            {} if by_row is None else {c.request.id: one for c, one in zip(sampling, by_row, strict=True)}
        )
        outputs = []
        for request in committed.advanced:
            is_first = request.id in first
            one = logprobs.get(request.id)
            outputs.append(
                Output(
                    id=request.id,
                    token_ids=[request.token_ids[-1]],
                    logprobs=None if one is None else [one],
                    prompt_logprobs=self._prompt_scores.take(request) if is_first else None,
                    num_cached_tokens=request.num_cached_tokens if is_first else None,
                    queued_s=self._queued_s.get(request.id) if is_first else None,
                    finish_reason=request.finish_reason,
                    stop_reason=request.stop_reason,
                )
            )
        self._forget([request for request in committed.finished if request.error is None])
        return outputs + self._ended([request for request in committed.finished if request.error is not None])

    def _ended(self, requests: Sequence[Request]) -> list[Output]:
        """The last output of requests that ended with an error."""
        self._forget(requests)
        return [failed_output(r.id, r.error or EngineError("generation failed")) for r in requests]

    def _forget(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.sampler.remove(request.id)
            self._prompt_scores.forget(request.id)
            self._queued_s.pop(request.id, None)
        self.runner.release(request.id for request in requests)

    def _roll_back(self, plan: Plan, error: Exception) -> list[Output]:
        """First failure: everything again in half the tokens. Next ones: without the largest chunk, so it ends."""
        self._num_failed_in_a_row += 1
        log.exception(
            "step %d of %d tokens failed (%d in a row)", plan.step, plan.num_tokens, self._num_failed_in_a_row
        )
        if isinstance(error, BadNumbers) or is_device_error(error):
            raise error
        culprits: dict[str, EngineError] = {}
        if self._num_failed_in_a_row > 1 or len(plan.chunks) == 1:
            culprit = max(plan.chunks, key=lambda chunk: (chunk.count, chunk.start)).request
            culprits[culprit.id] = EngineError(
                "computing this request failed twice; it was given up, others go on"
            )
        self.runner.give_back_memory()
        self._set_budget(max(1, self.scheduler.limits.max_num_batched_tokens // 2))
        ended = self.scheduler.fail(plan, culprits)
        return self._ended(ended)

    def _restart(self, request_ids: Sequence[str]) -> None:
        """These have lost their blocks: their tables begin anew, and a token in flight or thrown away does not count.

        In one place, and also when a plan computes nothing: they may be admitted only after the steps in flight.
        """
        self.runner.release(request_ids)
        for request_id in request_ids:
            request = self.scheduler.get(request_id)
            if request is None:
                continue
            prompt = request.token_ids[: request.num_prompt_tokens]
            output = request.token_ids[request.num_prompt_tokens :]
            self.sampler.add(request.id, request.params, prompt, output, self.config.eos_token_ids)

    def _recovered(self) -> None:
        if self._num_failed_in_a_row:
            self._num_failed_in_a_row = 0
            self._set_budget(self._full_budget)

    def _set_budget(self, tokens: int) -> None:
        self.scheduler.limits = replace(self.scheduler.limits, max_num_batched_tokens=tokens)


def _check_ids(field: str, token_ids: Sequence[int], vocab_size: int) -> None:
    """An id outside the vocabulary would read foreign memory on a device: refuse it before it joins a batch."""
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        raise InvalidRequest(f"{field} token ids must lie in 0..{vocab_size - 1}", param=field)
