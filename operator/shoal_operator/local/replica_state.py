"""Where one local process is between its start and its end, as a value that can be shown. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """State of process `name`; while loading, `done` of `total` in `phase` (bytes for "weights", 0: unknown).

    `since_s` is the time on the monotonic clock at which this state or phase began.
    """

    name: str
    state: State
    since_s: float
    phase: str = ""
    done: int = 0
    total: int = 0

    @property
    def fraction(self) -> float | None:
        """0..1, None while the end is unknown."""
        return min(self.done / self.total, 1.0) if self.total > 0 else None

    def remaining_s(self, now_s: float) -> float | None:
        """Seconds to the end of this phase at its mean speed so far; None: no telling."""
        fraction, elapsed_s = self.fraction, now_s - self.since_s
        if not fraction or elapsed_s <= 0:
            return None
        return elapsed_s * (1 - fraction) / fraction

    def follows(self, previous: ReplicaState | None) -> bool:
        """Whether this continues the phase of `previous`, so that both began at the same time."""
        return previous is not None and (self.state, self.phase) == (previous.state, previous.phase)
