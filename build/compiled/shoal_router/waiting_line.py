"""What waits for one model: its fair queue, and how long a newcomer would wait in it. Pure; time is passed in."""

from __future__ import annotations

from typing import Generic

from shoal_router.drain_rate import DrainRate
from shoal_router.fair_queue import Claim, FairQueue, Item
from shoal_router.keys import Priority


class WaitingLine(Generic[Item]):
    """`rate` is the model's and outlives the line; each tenant that waits has one of its own beside it."""

    def __init__(self, rate: DrainRate) -> None:
        self.queue: FairQueue[Item] = FairQueue()
        self._rate = rate
        self._rates: dict[tuple[str, Priority], DrainRate] = {}

    def __len__(self) -> int:
        return len(self.queue)

    def put(self, item: Item, claim: Claim, now_s: float, *, back: bool = False) -> None:
        """Let `item` wait; one that was taken and comes `back` waits before its tenant's others."""
        self.queue.put(item, claim, back=back)
        rates = self._rates.setdefault((claim.tenant, claim.band), DrainRate())
        for rate in (self._rate, rates):
            rate.opened(now_s)
            if back:
                rate.left(claim.tokens, now_s, back=True)

    def take(self, now_s: float) -> tuple[Item, Claim]:
        """Who is next, no longer waiting."""
        item, claim = self.queue.take()
        for rate in (self._rate, self._rates[claim.tenant, claim.band]):
            rate.left(claim.tokens, now_s)
        self._tidy(claim, now_s)
        return item, claim

    def remove(self, item: Item, now_s: float) -> Claim | None:
        """It waits no longer and got nothing; None when it did not wait."""
        claim = self.queue.remove(item)
        if claim is not None:
            self._tidy(claim, now_s)
        return claim

    def expected_wait_s(self, claim: Claim, now_s: float) -> float | None:
        """How long a new request would wait; None while that cannot be said.

        By what goes before it at the rate of all, or at the rate at which its own tenant gets on: the later of both.
        The first does not see requests that are yet to come and will go before it, the second does.
        """
        rate = self._rate.per_s(now_s, claim.tokens)
        if rate is None:
            return None
        wait_s = self.queue.ahead(claim) / rate
        own = self._rates.get((claim.tenant, claim.band))
        own_rate = own.per_s(now_s, claim.tokens) if own is not None else None
        if own_rate is not None:
            wait_s = max(wait_s, self.queue.tokens_of(claim) / own_rate)
        return wait_s

    def _tidy(self, claim: Claim, now_s: float) -> None:
        if not self.queue.of_tenant(claim)[0]:
            del self._rates[claim.tenant, claim.band]
        if not self.queue:
            self._rate.closed(now_s)
