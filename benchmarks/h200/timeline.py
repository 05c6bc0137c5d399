"""When each step of a run ended and whom it advanced. Reads nothing but the clock while the run lasts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Job(NamedTuple):
    id: str
    prompt: list[int]
    new_tokens: int


class Advance(NamedTuple):
    """What one step did for one request; `cached` prompt tokens came from the prefix cache, told with the first token."""

    id: str
    tokens: int
    cached: int = 0


class Subject(Protocol):
    """An engine under measurement. `step` returns its outputs as they are; `advances` reads them afterwards."""

    @property
    def load_seconds(self) -> Mapping[str, float]:
        """Of each phase of its start; empty when the engine does not tell."""

    def add(self, job: Job) -> None: ...

    def step(self) -> Any: ...

    def prepare(self) -> None:
        """What the engine otherwise does when it is idle, all of it."""

    @property
    def has_work(self) -> bool: ...

    def advances(self, outputs: Any) -> Iterable[Advance]:
        """Raises RuntimeError if a request ended with an error: its time would count as work."""


class Step(NamedTuple):
    end_s: float
    advances: list[Advance]


@dataclass(frozen=True)
class Timeline:
    """Of one run; times count from before the first request was added."""

    jobs: Sequence[Job]
    steps: list[Step]
    whole_s: float

    @property
    def new_tokens(self) -> int:
        return sum(one.tokens for step in self.steps for one in step.advances)

    @property
    def cached_tokens(self) -> int:
        return sum(one.cached for step in self.steps for one in step.advances)

    @property
    def first_token_s(self) -> float:
        return next(step.end_s for step in self.steps if step.advances)


def drive(subject: Subject, jobs: Sequence[Job]) -> Timeline:
    """All jobs at once, to their end. Raises RuntimeError when a request failed or got too few tokens."""
    taken: list[tuple[float, Any]] = []
    started = time.perf_counter()
    for job in jobs:
        subject.add(job)
    while subject.has_work:
        outputs = subject.step()
        taken.append((time.perf_counter(), outputs))
    whole_s = time.perf_counter() - started
    steps = [Step(end - started, list(subject.advances(outputs))) for end, outputs in taken]
    timeline = Timeline(jobs, steps, whole_s)
    wanted = sum(job.new_tokens for job in jobs)
    if timeline.new_tokens != wanted:
        raise RuntimeError(f"{timeline.new_tokens} tokens came, {wanted} were asked for")
    return timeline


class DecodeStep(NamedTuple):
    seconds: float
    context: float  # mean tokens per request that the step read


def steady_steps(timeline: Timeline) -> list[DecodeStep]:
    """Steps in which every request decoded and no prompt was computed: between two such outputs lies one step."""
    so_far = dict.fromkeys((job.id for job in timeline.jobs), 0)
    known = {job.id: len(job.prompt) for job in timeline.jobs}
    found: list[DecodeStep] = []
    previous_full = False
    previous_s = 0.0
    for step in timeline.steps:
        full = len(step.advances) == len(so_far) and all(one.tokens == 1 for one in step.advances)
        decodes = full and all(so_far[one.id] > 0 for one in step.advances)
        if decodes and previous_full:
            context = sum(known[name] + so_far[name] for name in so_far) / len(so_far)
            found.append(DecodeStep(step.end_s - previous_s, context))
        for one in step.advances:
            so_far[one.id] += one.tokens
        previous_full, previous_s = full, step.end_s
    return found
