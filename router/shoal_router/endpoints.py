"""The replicas this router knows: their standing, their load, and what they said of themselves.

One Endpoint per replica, changed by placer.py (own load), health.py (standing, report) and engine_link.py (report).
Chooses nothing, sends nothing.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import inf
from time import time
from typing import Final

from shoal_router import standing as standings
from shoal_router.discovery import Address
from shoal_router.pool import Pool
from shoal_router.standing import Standing, State

# Requests that may always wait in a replica, so that none of its seats is empty for long.
LEAST_AHEAD: Final = 2
# A router whose request ends has the free seat before others hear of it. One without any would never get one, so each
# of so many routers is sure of its part; then the others hear that there is too much, and leave seats free.
SURE_OF_A_PART: Final = 4
DEFAULT_KV_TOKENS: Final = 65_536  # until the engine has told the size of its cache
RECENT: Final = 50
FULL_KV_USAGE: Final = 0.95  # share in use from which on a request waits for others' blocks


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica last said of itself: its models as in /v1/models, cache and load as in /metrics or pushed."""

    models: tuple[tuple[str, bytes], ...] = ()  # id and the JSON object that /v1/models lists
    kv_tokens: int = DEFAULT_KV_TOKENS
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0  # share of the cache in use, 0 to 1
    max_num_seqs: int = 0  # requests that it computes at once; 0 while unknown
    max_requests: int = 0  # these and the waiting ones, above which it refuses; 0 while unknown
    started_at_s: float = 0.0  # changes when the engine restarts; 0 while unknown
    grpc_port: int = 0  # where it pushes its state; 0 when it does not

    @property
    def seats(self) -> float:
        """Requests that it computes at once: as many as run now when the cache is what keeps others waiting."""
        if self.waiting and self.running and self.kv_usage >= FULL_KV_USAGE:
            return self.running
        return self.max_num_seqs or inf


@dataclass(slots=True)
class Tally:
    """What has happened with one replica since it was added; formatted by metrics.py."""

    requests: int = 0
    faults: int = 0
    ejections: int = 0
    prompt_tokens: int = 0  # as the engine counted, where it told
    predicted_tokens: int = 0  # of these, believed to be cached when the request was routed
    cached_tokens: int = 0  # of these, really cached
    contradictions: int = 0
    updates: int = 0  # pushed by the engine and applied
    snapshots: int = 0  # of these
    gaps: int = 0  # times that an update was lost and a snapshot asked for


@dataclass(slots=True, eq=False)
class Endpoint:
    """One replica. `slot` is its bit in the prefix index; `identity` is the same in every router."""

    address: Address
    slot: int
    pool: Pool
    identity: int = 0
    label: bytes = b""  # the name, as x-shoal-replica shows it
    authority: bytes = b""
    standing: Standing = standings.ABSENT
    report: Report = Report()
    reported_s: float | None = None  # when its /metrics was last read, on the loop's clock
    in_flight: int = 0
    queued_tokens: float = 0.0
    waiting: dict[int, None] = field(
        default_factory=dict
    )  # stamps of requests without a first byte, oldest first
    linked: bool = False  # its engine pushes load and cache; else they are polled and believed
    elsewhere: int = 0  # requests it has from others, as it said last
    queued_elsewhere: float = 0.0  # uncached prompt tokens of these
    seats: float = inf  # requests that it computes at once; more wait there
    ceiling: float = inf  # requests at which it is full, as it said or as it showed since
    removed: bool = False
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(self.address.key.encode(), digest_size=8).digest()
        self.identity = int.from_bytes(digest, "big")
        self.label = self.address.name.encode()
        self.authority = self.address.authority.encode()

    @property
    def name(self) -> str:
        return self.address.name

    @property
    def state(self) -> State:
        return self.standing.state

    @property
    def cordoned(self) -> bool:
        return self.address.cordoned

    @property
    def accepts(self) -> bool:
        """Whether its engine takes one more request, be it to let it wait."""
        return self.in_flight + self.elsewhere < self.ceiling

    def takes_more(self, look_ahead: float) -> bool:
        """Whether it may be given one more request, when beside those that it computes only this share of them is to
        wait there: what waits in the router can still go elsewhere, or let others go first.
        """
        count = self.in_flight + self.elsewhere
        if count >= self.ceiling:
            return False
        if count < self.seats:
            return True
        places = self.seats + max(LEAST_AHEAD, look_ahead * self.seats)
        return count < places or self.in_flight < places // SURE_OF_A_PART

    def serves(self, model: str) -> bool:
        return any(name == model for name, _ in self.report.models)

    def take(self, report: Report, own: int, queued_tokens: float = 0.0) -> None:
        """It has said how it is, when it had `own` requests of this router and `queued_tokens` in all to prefill."""
        self.report = report
        requests = report.running + report.waiting
        self.elsewhere = max(0, requests - own)
        # Engine and router count a queue differently; others have no larger part of it than of the requests.
        foreign = queued_tokens * self.elsewhere / requests if requests else 0.0
        self.queued_elsewhere = min(max(0.0, queued_tokens - self.queued_tokens), foreign)
        self.seats = report.seats
        self.ceiling = report.max_requests or inf

    def refused(self) -> None:
        """It has just said that it is full; its next report, or the end of a request there, opens it again."""
        self.ceiling = float(self.in_flight + self.elsewhere)

    def charge(self, tokens: float, stamp: int) -> None:
        """A request with this many uncached prompt tokens is on its way there."""
        self.in_flight += 1
        self.queued_tokens += tokens
        self.waiting[stamp] = None

    def first_byte(self, tokens: float, stamp: int) -> None:
        """Its prompt is computed."""
        if self.waiting.pop(stamp, 0) is None:
            # Sums of floats drift; an empty queue is exactly empty.
            self.queued_tokens = self.queued_tokens - tokens if self.waiting else 0.0

    def discharge(self, tokens: float, stamp: int) -> None:
        """It is over, one way or another."""
        self.first_byte(tokens, stamp)
        self.in_flight -= 1


class EndpointSet:
    """All replicas by key.

    `on_change` callbacks run after a standing, a report or the membership has changed, `on_load` ones after a replica
    has told its load.
    """

    def __init__(self, make_pool: Callable[[Address], Pool]) -> None:
        self._make_pool = make_pool
        self._by_key: dict[str, Endpoint] = {}
        self._leaving: list[Endpoint] = []
        self._slots: set[int] = set()
        # When, who, from which state to which: for /debug.
        self.recent_moves: deque[tuple[float, str, State, State]] = deque(maxlen=RECENT)
        self.on_add: list[Callable[[Endpoint], None]] = []
        self.on_remove: list[Callable[[Endpoint], None]] = []
        self.on_change: list[Callable[[], None]] = []
        self.on_load: list[Callable[[], None]] = []

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def reconcile(self, addresses: Iterable[Address]) -> None:
        """Make the set be `addresses`: new ones start absent, gone ones finish what they have."""
        wanted = {address.key: address for address in addresses}
        for key, endpoint in list(self._by_key.items()):
            address = wanted.get(key)
            # A cordon changes nothing about the replica, so its cache and its requests stay with it.
            if address is None or replace(address, cordoned=endpoint.cordoned) != endpoint.address:
                self._remove(endpoint)
            else:
                endpoint.address = address
        for key, address in wanted.items():
            if key not in self._by_key:
                self._add(address)
        self.changed()

    @property
    def leaving(self) -> list[Endpoint]:
        """Replicas no longer in the set that still have requests in flight."""
        self._leaving = [endpoint for endpoint in self._leaving if endpoint.in_flight]
        return self._leaving

    def changed(self) -> None:
        for callback in self.on_change:
            callback()

    def loaded(self) -> None:
        for callback in self.on_load:
            callback()

    def set_standing(self, endpoint: Endpoint, standing: Standing) -> bool:
        """Returns whether the state changed; callbacks then have run."""
        before, endpoint.standing = endpoint.standing, standing
        if before.state is standing.state:
            return False
        self.recent_moves.append((time(), endpoint.name, before.state, standing.state))
        if standing.state is State.SUSPECT:
            endpoint.tally.ejections += 1
        self.changed()
        return True

    def _add(self, address: Address) -> None:
        slot = next(i for i in range(len(self._slots) + 1) if i not in self._slots)
        self._slots.add(slot)
        endpoint = self._by_key[address.key] = Endpoint(address, slot, self._make_pool(address))
        for callback in self.on_add:
            callback(endpoint)

    def _remove(self, endpoint: Endpoint) -> None:
        del self._by_key[endpoint.address.key]
        endpoint.removed = True
        self._leaving = [*self.leaving, endpoint]
        endpoint.pool.close()
        for callback in self.on_remove:
            callback(endpoint)
        # Its slot is free at once: who still holds the endpoint sees `removed` and leaves the index alone.
        self._slots.discard(endpoint.slot)
