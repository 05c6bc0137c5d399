"""Who of the waiting goes next: bands of priority, and within a band tenants with equal shares. Pure; no clock.

**Tenants** take turns by deficit round robin, counted in tokens, with the quantum made as small as it can be: instead
of going round in small steps, every tenant's first request gets the round in which its deficit will have reached its
cost (`finish`), and the earliest is next. So two tenants that wait never lie further apart in rounds than one largest
request, however many each of them has.

**Bands** go strictly by priority, but for a floor: of all tokens that leave while a lower band waits it gets at least
this share, so that it is slow at worst and never starves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from shoal_router.keys import Priority

FLOORS: Final = {Priority.HIGH: 0.0, Priority.NORMAL: 0.1, Priority.LOW: 0.05}

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Claim:
    """What one waiting request asks for."""

    tenant: str
    band: Priority
    tokens: float  # of prompt and expected answer; above 0
    size: int  # bytes that it holds while it waits


class Flow(Generic[Item]):
    """What one tenant has waiting in one band, first come first. Never empty."""

    __slots__ = ("items", "size", "start", "tokens")

    def __init__(self, start: float) -> None:
        self.items: OrderedDict[Item, Claim] = OrderedDict()
        self.start = start  # the round, in tokens, in which its first request began to save up
        self.tokens = 0.0
        self.size = 0

    @property
    def finish(self) -> float:
        """The round in which its first request can go."""
        return self.start + self.first.tokens

    @property
    def first(self) -> Claim:
        return next(iter(self.items.values()))


class Band(Generic[Item]):
    """One band. `owed` is what it may take before higher bands."""

    __slots__ = ("flows", "owed", "round", "tokens")

    def __init__(self) -> None:
        self.flows: dict[str, Flow[Item]] = {}
        self.round = 0.0
        self.tokens = 0.0
        self.owed = 0.0

    def next_tenant(self) -> str:
        """The tenant whose turn it is. Looks at all: they are few beside what a request costs."""
        return min(self.flows, key=lambda tenant: self.flows[tenant].finish)

    def put(self, item: Item, claim: Claim, *, back: bool) -> None:
        flow = self.flows.get(claim.tenant)
        if flow is None:
            flow = self.flows[claim.tenant] = Flow(self.round)
        flow.items[item] = claim
        if back:
            flow.items.move_to_end(item, last=False)
            flow.start -= claim.tokens  # what it had saved up
        flow.tokens += claim.tokens
        flow.size += claim.size
        self.tokens += claim.tokens

    def cut(self, item: Item, claim: Claim) -> None:
        flow = self.flows[claim.tenant]
        del flow.items[item]
        if flow.items:
            flow.tokens -= claim.tokens
            flow.size -= claim.size
        else:
            del self.flows[claim.tenant]
        # Sums of floats drift; an empty band is exactly empty.
        self.tokens = self.tokens - claim.tokens if self.flows else 0.0


class FairQueue(Generic[Item]):
    """All that waits for one model."""

    def __init__(self) -> None:
        self.claims: dict[Item, Claim] = {}
        self._bands: dict[Priority, Band[Item]] = {band: Band() for band in Priority}

    def __len__(self) -> int:
        return len(self.claims)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.claims)

    def __contains__(self, item: object) -> bool:
        return item in self.claims

    def put(self, item: Item, claim: Claim, *, back: bool = False) -> None:
        """Let `item` wait behind its tenant's others; one that was taken and comes `back` waits before them."""
        self.claims[item] = claim
        self._bands[claim.band].put(item, claim, back=back)

    def remove(self, item: Item) -> Claim | None:
        """It waits no longer and got nothing; None when it did not wait."""
        claim = self.claims.pop(item, None)
        if claim is not None:
            self._cut(item, claim)
        return claim

    def take(self) -> tuple[Item, Claim]:
        """Who is next, no longer waiting. There must be somebody."""
        band = self._next_band()
        flow = band.flows[band.next_tenant()]
        item, claim = next(iter(flow.items.items()))
        band.round = flow.start = flow.finish
        for priority, each in self._bands.items():
            if each.flows:
                each.owed += FLOORS[priority] * claim.tokens
        band.owed = max(0.0, band.owed - claim.tokens)
        del self.claims[item]
        self._cut(item, claim)
        return item, claim

    def ahead(self, claim: Claim) -> float:
        """Tokens that would go before a new request, were nobody else to come: its tenant's, as many of each other
        tenant of its band, and the bands above as far as the floor lets them.
        """
        band = self._bands[claim.band]
        flow = band.flows.get(claim.tenant)
        own = self.tokens_of(claim)
        reach = own + claim.tokens
        within = sum(min(each.tokens, reach) for each in band.flows.values() if each is not flow) + own
        above = sum(self._bands[each].tokens for each in Priority if each < claim.band)
        floor = FLOORS[claim.band]
        return min(within + above, (within + claim.tokens) / floor) if floor else within + above

    def tokens_of(self, claim: Claim) -> float:
        """Tokens of its tenant that wait in its band."""
        flow = self._bands[claim.band].flows.get(claim.tenant)
        return flow.tokens if flow is not None else 0.0

    def of_tenant(self, claim: Claim) -> tuple[int, int]:
        """How many of its tenant wait in its band, and their bytes."""
        flow = self._bands[claim.band].flows.get(claim.tenant)
        return (len(flow.items), flow.size) if flow is not None else (0, 0)

    def _next_band(self) -> Band[Item]:
        waiting = [self._bands[priority] for priority in Priority if self._bands[priority].flows]
        for band in reversed(waiting[1:]):
            if band.owed >= band.flows[band.next_tenant()].first.tokens:
                return band
        return waiting[0]

    def _cut(self, item: Item, claim: Claim) -> None:
        band = self._bands[claim.band]
        band.cut(item, claim)
        if not band.flows:
            band.owed = 0.0
