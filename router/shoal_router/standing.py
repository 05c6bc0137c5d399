"""A replica's standing with this router: what a fault, a success and a health check do to it.

Pure; time is passed in.

        ready              fault                     ready, after a pause
ABSENT ------> HEALTHY ------------> SUSPECT ------------------------------> HALF_OPEN
   ^              ^                     ^                                     |     |
   |              |                     +--------------- fault ---------------+     |
   |              +----------------------------------- success ---------------------+
   +--- says that it is not ready (loading, draining), or stays unreachable
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Final

SOFT_FAULTS: Final = 3  # consecutive 5xx replies or missed health checks that count as one hard fault
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0
# In a row; then an unreachable replica is no longer tried even when nobody else is left.
GIVE_UP_EJECTIONS: Final = 8


class State(StrEnum):
    ABSENT = "absent"  # never seen ready, or says that it is not
    HEALTHY = "healthy"
    SUSPECT = "suspect"  # ejected: used only when nobody else is left
    HALF_OPEN = "half_open"  # answers health checks again; one request at a time until one succeeds


class Outcome(Enum):
    """What an attempt of a request says about its replica."""

    SUCCESS = "success"
    SOFT_FAULT = "soft_fault"  # a 5xx
    HARD_FAULT = "hard_fault"  # reset or silent
    UNREACHABLE = "unreachable"  # no connection
    NOT_READY = "not_ready"  # it said so itself


@dataclass(frozen=True, slots=True)
class Standing:
    """`pause_until_s` is on the clock that the caller passes as `now`."""

    state: State = State.ABSENT
    soft_faults: int = 0
    ejections: int = 0  # in a row, without a success between them
    pause_until_s: float = 0.0
    unreachable: bool = False  # ejected because nobody listens there: that can be no mistake


ABSENT: Final = Standing()
HEALTHY: Final = Standing(State.HEALTHY)


def after_outcome(standing: Standing, outcome: Outcome, now: float) -> Standing:
    """An attempt of a request has ended, or begun to answer."""
    if outcome is Outcome.SUCCESS:
        return after_success(standing)
    if outcome is Outcome.NOT_READY:
        return after_not_ready()
    if outcome is Outcome.UNREACHABLE:
        return _deserted(after_fault(standing, now, hard=True))
    return after_fault(standing, now, hard=outcome is Outcome.HARD_FAULT)


def after_fault(standing: Standing, now: float, *, hard: bool) -> Standing:
    """A connection was refused, reset or silent (hard), or a 5xx came or a health check was missed (soft)."""
    soft = standing.soft_faults + 1
    if standing.state is State.ABSENT:
        return standing
    if standing.state is State.HEALTHY and not hard and soft < SOFT_FAULTS:
        return replace(standing, soft_faults=soft)
    if standing.state is State.SUSPECT and now < standing.pause_until_s:
        return standing  # requests under way when it was ejected say nothing new
    ejections = standing.ejections + 1
    pause_s = min(FIRST_PAUSE_S * 2 ** (ejections - 1), LONGEST_PAUSE_S)
    return Standing(State.SUSPECT, 0, ejections, now + pause_s)


def after_success(standing: Standing) -> Standing:
    """A request got an answer. A late one from before the ejection does not end it."""
    return standing if standing.state in (State.ABSENT, State.SUSPECT) else HEALTHY


def after_ready(standing: Standing, now: float) -> Standing:
    """A health check found the replica ready."""
    if standing.state is State.ABSENT:
        return HEALTHY
    if standing.state is State.SUSPECT and now >= standing.pause_until_s:
        return replace(standing, state=State.HALF_OPEN, unreachable=False)
    return standing


def after_not_ready() -> Standing:
    """The replica itself says that it takes no requests: it is loading or draining. No fault."""
    return ABSENT


def after_unreachable(standing: Standing, now: float, *, hard: bool) -> Standing:
    """A health check got no answer: the connection was refused (hard), or nothing came in time."""
    fallen = after_fault(standing, now, hard=hard)
    if fallen.ejections >= GIVE_UP_EJECTIONS:
        return ABSENT
    return _deserted(fallen) if hard else fallen


def _deserted(standing: Standing) -> Standing:
    return replace(standing, unreachable=True) if standing.state is State.SUSPECT else standing
