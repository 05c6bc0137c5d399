"""The lines of a router under any order of arrivals, ends, departures and time: nobody is lost, overtaken or forgotten."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

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

    def attempt(self) -> None:
        world = self.world
        if world.replica.takes_more(0.0):
            world.replica.in_flight += 1
            world.running.append(self)
            world.began.append(self)
        else:
            world.admission.wait(self, "m", world.models.full("m"))

    def refuse(self, error: RouterError) -> None:
        assert isinstance(error, ReplicasFull)
        assert error.retry_after_s is not None
        assert 1 <= error.retry_after_s <= 3600
        self.world.refused.append(self)


@dataclass
class World:
    now_s: float = 0.0
    running: list[Request] = field(default_factory=list)
    began: list[Request] = field(default_factory=list)
    refused: list[Request] = field(default_factory=list)
    gone: int = 0

    def __post_init__(self) -> None:
        address = Address("a", "127.0.0.1", 1)
        report = Report((("m", b"{}"),))
        self.replica = Endpoint(address, 0, Pool(address, 1.0), standing=HEALTHY, report=report)
        self.replica.ceiling = SEATS
        self.models = ModelTable([self.replica], Routing(queue_s=QUEUE_S, max_queued=MAX_QUEUED))
        self.demand = Demand(lambda: self.now_s)
        self.admission = Admission(
            self.models, self.demand, Metrics(), MAX_BYTES, now=lambda: self.now_s, chance=lambda: 0.5
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
