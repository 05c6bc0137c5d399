"""Which of very many replicas are worth a cost: those that hold most of the prompt, the prompt's homes, some at random.

Beyond MOST_SCORED replicas a choice costs the same however many there are. Homes are found on a ring of hashed
points, which all routers draw alike; the random ones keep an idle replica from being overlooked. Chooses nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from typing import Final

from shoal_router.endpoints import Endpoint
from shoal_router.policy import affinity

MOST_SCORED: Final = 64
HOLDERS, HOMES, DRAWN = 16, 8, 16
_POINTS: Final = 32  # of each replica on the ring
_MEAN_EVERY: Final = 64  # choices


class Fleet:
    """The replicas that a model's requests may go to, prepared once for many choices."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = endpoints
        self.slots = 0  # bit mask
        self._by_slot = {endpoint.slot: endpoint for endpoint in endpoints}
        for slot in self._by_slot:
            self.slots |= 1 << slot
        ring = sorted(
            (affinity(number, endpoint.identity), at)
            for at, endpoint in enumerate(endpoints)
            for number in range(_POINTS)
        )
        self._points = [point for point, _ in ring]
        self._owners = [endpoints[at] for _, at in ring]
        self._choices = 0
        self._mean = 0.0

    @property
    def mean_in_flight(self) -> float:
        """Requests per replica; up to some choices old."""
        if self._choices % _MEAN_EVERY == 0:
            self._mean = sum(each.in_flight + each.elsewhere for each in self.endpoints) / len(self.endpoints)
        self._choices += 1
        return self._mean

    def shortlist(
        self, holders: Collection[int], home: int | None, pick: Callable[[int], int]
    ) -> tuple[list[Endpoint], Collection[Endpoint]]:
        """The list, and which of it are there by chance alone.

        `holders`: slots that hold most; `home`: hash of the prefix whose homes count.
        """
        found = dict.fromkeys(self._by_slot[slot] for slot in holders)
        if home is not None:
            at = bisect_right(self._points, home)
            most = len(found) + HOMES
            while len(found) < most:
                found[self._owners[at % len(self._owners)]] = None
                at += 1
        drawn = {self.endpoints[pick(len(self.endpoints))] for _ in range(DRAWN)}.difference(found)
        return [*found, *drawn], drawn
