"""The lines of a router under any order of arrivals, ends, departures and time: nobody is lost, overtaken or forgotten."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_router.admission import Admission
from shoal_router.demand import Demand
from shoal_router.discovery import Address
from shoal_router.endpoints import Endpoint, Report
from shoal_router.errors import ReplicasFull, RouterError
from shoal_router.fair_queue import Claim
from shoal_router.keys import Priority
from shoal_router.metrics import Metrics
from shoal_router.models import ModelTable
from shoal_router.pool import Pool
from shoal_router.routing import Routing
from shoal_router.standing import HEALTHY

QUEUE_S, MAX_QUEUED, MAX_BYTES, SEATS = 5.0, 8, 60, 4
COMES = st.tuples(
    st.sampled_from(["", "a", "b"]), st.sampled_from(Priority), st.integers(1, 99), st.integers(0, 20)
)
STEPS = st.lists(COMES | st.sampled_from(["end", "end", "leave", "second", "resize"]), max_size=80)


@dataclass(eq=False)
class Request:
    """A request as the router plays it: to the replica if it has room, else it waits."""

    world: World
    number: int
    claim: Claim
    started_s: float
    waits_until_s: float = 0.0
    began_s: float = 0.0
    refused_s: float = 0.0
    retry_after_s: int = 0

    def attempt(self) -> None:
        world = self.world
        if world.replica.takes_more(0.0):
            world.replica.in_flight += 1
            world.running.append(self)
            world.began.append(self)
            self.began_s = world.now_s
        else:
            world.admission.wait(self, "m", world.models.full("m"))

    def refuse(self, error: RouterError) -> None:
        assert isinstance(error, ReplicasFull)
        assert error.retry_after_s is not None
        assert 1 <= error.retry_after_s <= 3600
        self.refused_s = self.world.now_s
        self.retry_after_s = error.retry_after_s
        self.world.refused.append(self)


@dataclass
class World:
    now_s: float = 0.0
    max_queued: int = MAX_QUEUED
    max_bytes: int = MAX_BYTES
    running: list[Request] = field(default_factory=list)
    began: list[Request] = field(default_factory=list)
    refused: list[Request] = field(default_factory=list)
    gone: int = 0

    def __post_init__(self) -> None:
        address = Address("a", "127.0.0.1", 1)
        report = Report((("m", b"{}"),))
        self.replica = Endpoint(address, 0, Pool(address, 1.0), standing=HEALTHY, report=report)
        self.replica.ceiling = SEATS
        self.models = ModelTable([self.replica], Routing(queue_s=QUEUE_S, max_queued=self.max_queued))
        self.demand = Demand(lambda: self.now_s)
        self.metrics = Metrics()
        self.admission = Admission(
            self.models, self.demand, self.metrics, self.max_bytes, now=lambda: self.now_s, chance=lambda: 0.5
        )

    @property
    def waiting(self) -> list[Request]:
        line = self.admission.queues.get("m")
        return [] if line is None else list(line.queue)  # type: ignore[arg-type]

    def step(self, what: object, number: int) -> None:
        if isinstance(what, tuple):
            tenant, band, tokens, size = what
            request = Request(self, number, Claim(tenant, band, tokens, size), self.now_s)
            self.admission.line_up(request, "m") if self.waiting else request.attempt()
        elif what == "end" and self.running:
            self.running.pop(0)
            self.gone += 1
            self.replica.in_flight -= 1
            self.admission.changed()
        elif what == "leave" and self.waiting:
            self.gone += self.admission.drop(self.waiting[-1], "m")
        elif what == "resize":
            self.replica.ceiling = 1 if self.replica.ceiling == SEATS else SEATS
            self.admission.changed()
        elif what == "second":
            self.now_s += 1.0
            self.admission.sweep()


def check(world: World, arrived: int) -> None:
    waiting, admission = world.waiting, world.admission
    assert len(world.running) <= SEATS
    assert not (waiting and world.replica.takes_more(0.0)), "nobody waits while there is room"
    assert len(waiting) <= MAX_QUEUED
    assert admission.held_bytes == sum(each.claim.size for each in waiting) <= MAX_BYTES
    assert world.demand.of(("m",))[1] == len(waiting), "the operator is told how many"
    assert all(world.now_s - each.started_s < QUEUE_S for each in waiting)
    own = Counter(each.claim.tenant for each in waiting if each.claim.tenant)
    assert all(count <= 3 * MAX_QUEUED / 4 for count in own.values()), "a tenant leaves room, band by band"
    assert len(world.running) + len(waiting) + len(world.refused) + world.gone == arrived
    if not waiting:
        assert (admission.queues, admission._whys, admission.held_bytes) == ({}, {}, 0)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_lines_lose_nobody_and_overtake_nobody_of_the_same_tenant(steps: list[object]) -> None:
    async def scenario() -> None:
        world, arrived = World(), 0
        for number, what in enumerate(steps):
            world.step(what, number)
            await asyncio.sleep(0)  # what a change has set free goes on in a turn of its own
            arrived += isinstance(what, tuple)
            check(world, arrived)
        last: dict[tuple[str, Priority], int] = {}
        for each in world.began:
            key = each.claim.tenant, each.claim.band
            assert each.number > last.get(key, -1), "first come, first served"
            last[key] = each.number

    asyncio.run(scenario())


# Per second of virtual time: ten requests of 10 tokens end. What comes, by tenant and band.
OVERLOADS: dict[str, list[tuple[str, Priority, int]]] = {
    "twice what there is": [("a", Priority.NORMAL, 20)],
    "five times": [("a", Priority.NORMAL, 50)],
    "without tenants": [("", Priority.NORMAL, 50)],
    "a polite tenant beside a flood": [("polite", Priority.NORMAL, 3), ("flood", Priority.NORMAL, 47)],
    "two floods": [("a", Priority.NORMAL, 20), ("b", Priority.NORMAL, 60)],
    "bands": [("a", Priority.HIGH, 8), ("b", Priority.NORMAL, 20), ("c", Priority.LOW, 20)],
}


async def overload(arrivals: list[tuple[str, Priority, int]], seconds: int) -> World:
    """Ticks of a tenth of a second: one request ends in each while a replica has any."""
    world = World(max_queued=1000, max_bytes=10**6)
    number = 0
    for tick in range(10 * seconds):
        world.now_s = tick / 10
        for tenant, band, per_s in arrivals:
            for _ in range((tick + 1) * per_s // 10 - tick * per_s // 10):
                number += 1
                request = Request(world, number, Claim(tenant, band, 10, 1), world.now_s)
                world.admission.line_up(request, "m") if world.waiting else request.attempt()
        world.step("end", number)
        if tick % 5 == 0:
            world.admission.sweep()
        await asyncio.sleep(0)
    return world


@pytest.mark.parametrize("name", OVERLOADS)
def test_far_too_much_is_refused_at_once_and_what_is_let_in_is_served_in_time(name: str) -> None:
    seconds, start = 60, 15.0
    world = asyncio.run(overload(OVERLOADS[name], seconds))
    late = world.metrics.queue_refusals["late"]
    # A low band learns how little higher ones leave it by waiting for the first time.
    assert late <= (0.05 * len(world.refused) if name == "bands" else 0)
    assert sum(each.refused_s == each.started_s for each in world.refused) == len(world.refused) - late
    served = [each for each in world.began if each.began_s >= start]
    assert len(served) >= 0.99 * 10 * (seconds - start), "nobody is refused while a seat is free"
    assert all(each.began_s - each.started_s <= QUEUE_S + 0.5 for each in served)
    steady = [each for each in world.refused if each.started_s >= start]
    assert all(
        1 <= each.retry_after_s <= 3 * QUEUE_S for each in steady if each.claim.band is not Priority.LOW
    )
    got = Counter(each.claim.tenant for each in served)
    if name == "a polite tenant beside a flood":
        assert not [
            each for each in world.refused if each.claim.tenant == "polite" and each.started_s >= start
        ]
        waits = sorted(each.began_s - each.started_s for each in served if each.claim.tenant == "polite")
        assert waits[-1] <= 0.5
    if name == "two floods":
        assert got["a"] == pytest.approx(got["b"], rel=0.1)
    if name == "bands":
        total = got.total()
        assert got["a"] == pytest.approx(0.8 * total, rel=0.1), "all that it asks for"
        assert got["b"] >= 0.09 * total
        assert got["c"] >= 0.045 * total
