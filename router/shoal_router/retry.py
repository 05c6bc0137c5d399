"""Whether a failed attempt may be repeated on another replica, and whether a broken-off stream may go on there.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from shoal_router.failure import Failure

BUDGET_FLOOR: Final = 3  # retries at a time that are always allowed
GONE: Final = (Failure.CONNECT, Failure.LOST, Failure.REFUSED)
DEATHS: Final = (
    Failure.LOST,
    Failure.TIMEOUT,
    Failure.BAD_REPLY,
)  # the replica may have died of this very request
# A connection that the replica had closed while it lay idle fails within a round trip; later the replica
# itself died.
STALE_WITHIN_S: Final = 0.25
MAX_DEATHS: Final = 5  # of the replicas of one stream


@dataclass(frozen=True, slots=True)
class RetryLimits:
    max_retries: int = 2
    budget: float = 0.2  # retries in progress as a share of requests in progress


@dataclass(frozen=True, slots=True)
class History:
    """What one request has been through."""

    retries: int = 0  # before a reply began
    stale: int = 0  # connections, since a reply last began
    deaths: int = 0  # replicas that may have died of this very request, silent ones included
    fruitless: int = 0  # of these, died before it got a token there

    def after(self, failure: Failure, *, begun: bool = False, fruitful: bool = False) -> History:
        """`begun`: its client has seen a part of the answer; `fruitful`: it got a token from this replica."""
        if failure is Failure.STALE:
            return replace(self, stale=self.stale + 1)
        died = failure in DEATHS
        return History(
            retries=self.retries + (not begun),
            stale=0 if fruitful else self.stale,
            deaths=self.deaths + died,
            # Silence and broken HTTP are no proof that the process has died.
            fruitless=self.fruitless + (failure is Failure.LOST and not fruitful),
        )


FRESH: Final = History()


def may_retry(
    failure: Failure,
    past: History,
    limits: RetryLimits,
    *,
    active: int,
    retrying: int,
    suspected: bool = False,
) -> bool:
    """Before a reply has begun. `active` requests are in progress; `retrying` of the others are not on their first
    attempt. `suspected`: replicas may be dying of this one.
    """
    if failure is Failure.STALE:
        return past.stale == 0  # costs the fleet nothing: the replica never saw the request
    after = past.after(failure)
    if suspected or (after.deaths > 1 and after.deaths > after.fruitless):
        return False  # a request that kills, or silences, what it meets is not handed round
    if past.retries >= limits.max_retries:
        return False
    # The requests of a replica that is gone move on at once, however many they are: each moves once at little cost.
    moves = past.retries == 0 and failure in GONE
    return moves or retrying < max(BUDGET_FLOOR, limits.budget * active)


def may_resume(history: History) -> bool:
    """After a stream has begun; `history` includes its last failure.

    No budget: what is resumed is no more than what was running, and giving it up would waste what was computed.
    """
    return history.deaths <= MAX_DEATHS and history.stale <= 1
