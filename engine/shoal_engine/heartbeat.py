"""The engine's pulse in memory shared with the API process: readable while the engine hangs, so a hang can be
told.

A file of eight uint64 that both sides map. Each field is written with one aligned store and read with one
aligned load; no two fields need to agree, so there is no lock. Times are CLOCK_MONOTONIC, one clock for all
processes of a machine.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from dataclasses import dataclass

_FIELDS = 8
_BYTES = _FIELDS * 8
_STEPS, _STEP_AT_NS, _BUSY_SINCE_NS = range(3)


@dataclass(frozen=True, slots=True)
class Beat:
    """What the engine last wrote. `busy_since_ns` 0: it has no work."""

    steps: int
    step_at_ns: int
    busy_since_ns: int


@dataclass(frozen=True, slots=True)
class HangLimits:
    """How long work may wait for a step. The first steps compile kernels and capture graphs."""

    step_s: float = 60.0
    first_step_s: float = 300.0
    first_steps: int = 32


class Heartbeat:
    """One end of the shared memory; the API process creates it and hands its descriptor to the engine
    process.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, _BYTES)
        self._fields = memoryview(self._map).cast("Q")

    @classmethod
    def create(cls) -> Heartbeat:
        """In a file that has no name any more: nothing to clean up, and nobody else can open it."""
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
        os.ftruncate(fd, _BYTES)
        return cls(fd)

    def read(self) -> Beat:
        return Beat(self._fields[_STEPS], self._fields[_STEP_AT_NS], self._fields[_BUSY_SINCE_NS])

    def begin(self) -> None:
        """The engine has work from now on."""
        if not self._fields[_BUSY_SINCE_NS]:
            self._fields[_BUSY_SINCE_NS] = time.monotonic_ns()

    def step(self) -> None:
        self._fields[_STEPS] += 1
        self._fields[_STEP_AT_NS] = time.monotonic_ns()

    def idle(self) -> None:
        self._fields[_BUSY_SINCE_NS] = 0

    def close(self) -> None:
        self._fields.release()
        self._map.close()
        os.close(self.fd)


def stalled_s(beat: Beat, waiting_since_ns: int | None, now_ns: int) -> float:
    """Seconds for which there has been work and no step; 0 without work.

    `waiting_since_ns`: since when the API process has had requests with the engine, None if it has none. It
    counts even if the engine thinks itself idle: one that hangs before it reads its socket knows of no work.
    """
    starts = [start for start in (beat.busy_since_ns, waiting_since_ns) if start]
    if not starts:
        return 0.0
    return max(now_ns - max(min(starts), beat.step_at_ns), 0) / 1e9


def hangs(beat: Beat, waiting_since_ns: int | None, now_ns: int, limits: HangLimits) -> bool:
    """Whether the engine has let work wait for longer than a step can take."""
    limit_s = limits.first_step_s if beat.steps < limits.first_steps else limits.step_s
    return stalled_s(beat, waiting_since_ns, now_ns) > limit_s
