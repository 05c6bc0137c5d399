"""An engine whose every step is known: it prefills so many requests a step, then they all decode."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from timeline import Advance, Job


@dataclass
class ScriptedSubject:
    """`prefills` requests get their first token in a step; only then do others decode. A step lasts `step_s`."""

    prefills: int = 2
    step_s: float = 0.0
    lost_tokens: int = 0  # of the first request, never delivered
    jobs: list[Job] = field(default_factory=list)
    load_seconds: dict[str, float] = field(default_factory=dict)
    _left: dict[str, int] = field(default_factory=dict)
    _waiting: list[Job] = field(default_factory=list)

    def add(self, job: Job) -> None:
        lost = 0 if self.jobs else self.lost_tokens
        self.jobs.append(job)
        self._waiting.append(Job(job.id, job.prompt, job.new_tokens - lost))

    @property
    def has_work(self) -> bool:
        return bool(self._left or self._waiting)

    def prepare(self) -> None:
        pass

    def step(self) -> Any:
        time.sleep(self.step_s)
        starting, self._waiting = self._waiting[: self.prefills], self._waiting[self.prefills :]
        self._left |= {job.id: job.new_tokens for job in starting}
        outputs = list(self._left)
        self._left = {name: left - 1 for name, left in self._left.items() if left > 1}
        return outputs

    def advances(self, outputs: Any) -> Iterable[Advance]:
        return [Advance(name, 1) for name in outputs]
