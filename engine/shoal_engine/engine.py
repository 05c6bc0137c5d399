"""One step after another: schedule, run, sample, commit, emit. Runs in whatever process owns it; knows no sockets.

A bad request ends alone. A row without a usable logit ends with an error and its blocks leave the prefix cache; a step
that fails is rolled back and tried again smaller, and only when it fails again its largest chunk is given up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from shoal_api.options import ModelOptions
from torch import Tensor

from shoal_engine.config import ModelConfig
from shoal_engine.errors import EngineError, InvalidRequest
from shoal_engine.messages import Loading, Output, Ready, Stats, Submit, TokenLogprobs
from shoal_engine.request import Request
from shoal_engine.runner import Runner
from shoal_engine.sampler import Sampled, Sampler
from shoal_engine.scheduler import Chunk, Plan, Scheduler
from shoal_engine.sampling_params import SamplingParams


class Engine:
    def __init__(
        self, runner: Runner, scheduler: Scheduler, sampler: Sampler, config: ModelConfig, model_path: Path, ready: Ready
    ) -> None:
        self.config = config
        self.model_path = model_path
        self.ready = ready
        self._runner = runner
        self._scheduler = scheduler
        self._sampler = sampler
        self._failures_in_a_row = 0
        self._arrivals = 0
        self._outbox: list[Output] = []

    @classmethod
    def load(cls, options: ModelOptions, progress: Callable[[Loading], None] = lambda _: None) -> Engine:
        """Load a model and generate one token with it. Raises ModelLoadError that says what to change."""
        from shoal_engine.loading import load_engine

        return load_engine(options, progress)

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or bool(self._outbox)

    def add(self, submit: Submit) -> None:
        """Queue a request of n=1. Raises EngineError: it is malformed, can never fit, or the queue is full."""
        _check_token_ids(submit, self.config.vocab_size)
        self._arrivals += 1
        self._scheduler.add(Request.from_submit(submit, self._arrivals))
        if submit.params.prompt_logprobs is not None:
            self._prompt_logprobs[submit.id] = [None]

    def abort(self, request_ids: Sequence[str]) -> None:
        """End requests in any state, at once and silently. Unknown ids are fine: they may just have ended."""
        for request_id in request_ids:
            self._scheduler.abort(request_id)
            self._forget(request_id)

    def step(self) -> list[Output]:
        """Compute one step; returns what it did for each request that it advanced or ended."""
        started = time.perf_counter()
        plan = self._scheduler.schedule()
        outputs = [self._ended(request) for request in plan.failed]
        if plan.chunks:
            outputs += self._attempt(plan)
        self._step_seconds = time.perf_counter() - started
        self._step_tokens = plan.num_tokens
        return outputs
