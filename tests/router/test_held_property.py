"""The queue of a model under any order of arrivals, ends, departures and time: nobody is lost, overtaken or forgotten."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_router.demand import Demand
from shoal_router.discovery import Address
from shoal_router.endpoints import Endpoint, Report
from shoal_router.errors import ReplicasFull, RouterError
from shoal_router.held import Held
from shoal_router.models import ModelTable
from shoal_router.pool import Pool
from shoal_router.routing import Routing
from shoal_router.standing import HEALTHY

QUEUE_S, MAX_QUEUED, SEATS = 5.0, 4, 4
STEPS = st.lists(st.sampled_from(["arrive", "arrive", "end", "leave", "second", "resize"]), max_size=80)


@dataclass(eq=False)
class Request:
    """A request as the router plays it: to the replica if it has room, else it waits."""

    world: World
    number: int
    started_s: float
    waits_until_s: float = 0.0

    def attempt(self) -> None:
        world = self.world
        if world.replica.has_room:
            world.replica.in_flight += 1
            world.running.append(self)
        else:
            world.held.wait(self, "m", world.models.full("m"))

    def refuse(self, error: RouterError) -> None:
        assert isinstance(error, ReplicasFull)
        self.world.refused.append(self)


@dataclass
class World:
    now_s: float = 0.0
    running: list[Request] = field(default_factory=list)
    refused: list[Request] = field(default_factory=list)
    gone: int = 0

    def __post_init__(self) -> None:
        address = Address("a", "127.0.0.1", 1)
        report = Report((("m", b"{}"),))
        self.replica = Endpoint(address, 0, Pool(address, 1.0), standing=HEALTHY, report=report)
        self.replica.ceiling = SEATS
        self.models = ModelTable([self.replica], Routing(queue_s=QUEUE_S, max_queued=MAX_QUEUED))
        self.held = Held(self.models, Demand(lambda: self.now_s), lambda: self.now_s)

    @property
    def waiting(self) -> list[Request]:
        return list(self.held.queues.get("m", ()))  # type: ignore[arg-type]

    def step(self, what: str, number: int) -> None:
        if what == "arrive":
            request = Request(self, number, self.now_s)
            self.held.line_up(request, "m") if self.waiting else request.attempt()
        elif what == "end" and self.running:
            self.running.pop(0)
            self.gone += 1
            self.replica.in_flight -= 1
            self.held.changed()
        elif what == "leave" and self.waiting:
            self.gone += self.held.drop(self.waiting[-1], "m")
        elif what == "resize":
            self.replica.ceiling = 1 if self.replica.ceiling == SEATS else SEATS
            self.held.changed()
        elif what == "second":
            self.now_s += 1.0
            self.held.sweep()


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_queue_loses_and_overtakes_nobody(steps: list[str]) -> None:
    async def scenario() -> None:
        world, arrived = World(), 0
        for number, what in enumerate(steps):
            started = max([r.number for r in world.running], default=-1)
            world.step(what, number)
            await asyncio.sleep(0)  # what a change has set free goes on in a turn of its own
            arrived += what == "arrive"
            waiting = world.waiting
            assert len(world.running) <= SEATS
            assert not (waiting and world.replica.has_room), "nobody waits while there is room"
            assert len(waiting) <= MAX_QUEUED
            assert [r.number for r in waiting] == sorted(r.number for r in waiting)
            assert all(r.number > started for r in waiting), "first come, first served"
            assert all(world.now_s - r.started_s < QUEUE_S for r in waiting)
            assert len(world.running) + len(waiting) + len(world.refused) + world.gone == arrived

    asyncio.run(scenario())
