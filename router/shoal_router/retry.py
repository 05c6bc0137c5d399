"""Whether a failed attempt may be repeated on another replica.

Pure; only asked before the first byte went out.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal_router.failure import Failure

BUDGET_FLOOR = 3  # retries at a time that are always allowed
GONE = (Failure.CONNECT, Failure.LOST, Failure.REFUSED)
# A connection that the replica had closed while it lay idle fails within a round trip; later the replica
# itself died.
STALE_WITHIN_S = 0.25


@dataclass(frozen=True, slots=True)
class RetryLimits:
    max_retries: int = 2
    budget: float = 0.2  # retries in progress as a share of requests in progress


@dataclass(frozen=True, slots=True)
class History:
    """What one request has been through."""

    retries: int = 0
    stale: int = 0
    deaths: int = 0  # replicas that may have died of this very request

    def after(self, failure: Failure) -> History:
        died = failure in (Failure.LOST, Failure.TIMEOUT, Failure.BAD_REPLY)
        if failure is Failure.STALE:
            return History(self.retries, self.stale + 1, self.deaths)
        return History(self.retries + 1, self.stale, self.deaths + died)


FRESH = History()


def may_retry(failure: Failure, past: History, limits: RetryLimits, *, active: int, retrying: int) -> bool:
    """`active` requests are in progress; `retrying` of the others are not on their first attempt."""
    if failure is Failure.STALE:
        return past.stale == 0  # costs the fleet nothing: the replica never saw the request
    if past.after(failure).deaths > 1:
        return False  # a request that kills what it meets is not handed round
    if past.retries >= limits.max_retries:
        return False
    # The requests of a replica that is gone move on at once, however many they are: each moves once at little cost.
    moves = past.retries == 0 and failure in GONE
    return moves or retrying < max(BUDGET_FLOOR, limits.budget * active)
