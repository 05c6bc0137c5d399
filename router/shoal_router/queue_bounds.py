"""Whether one more request may wait: bounds on number, bytes and expected time. Pure decisions on frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shoal_router.fair_queue import Claim

# Estimates err, and who is let in should not be refused after all: the rest of the allowed time is for that.
PROMISED: Final = 0.7
FEW: Final = 16  # requests that may wait while nothing is known about how long it takes


class Full(StrEnum):
    """Why a request may not wait."""

    COUNT = "count"
    BYTES = "bytes"
    WAIT = "wait"
    LATE = "late"  # it was let in, and its time ran out


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may wait at most; a `wait_s` of None sets no bound on the expected time."""

    count: int
    size: int  # bytes, of all models together
    wait_s: float | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits already where a request wants to join."""

    count: int
    size: int
    own_count: int  # of the request's tenant
    own_size: int
    running: int  # requests that the replicas have
    expected_s: float | None  # that the request would wait; None when that cannot be said


def why_full(waiting: Waiting, bounds: Bounds, claim: Claim) -> Full | None:
    """The bound that a request would break, if any.

    A tenant may hold no more places, nor bytes, than it leaves free: so the first one to come gets half of them at
    most, and there is always room for another. Requests without a tenant share all of them.
    """
    places, space = bounds.count - waiting.count, bounds.size - waiting.size
    if places <= 0 or (claim.tenant and waiting.own_count >= places):
        return Full.COUNT
    if claim.size > space or (claim.tenant and waiting.own_size + claim.size > space):
        return Full.BYTES
    if bounds.wait_s is None:
        return None
    if waiting.expected_s is None:
        return Full.WAIT if waiting.count >= max(waiting.running, FEW) else None
    return Full.WAIT if waiting.expected_s > PROMISED * bounds.wait_s else None
