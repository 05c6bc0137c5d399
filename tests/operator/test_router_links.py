"""The operator's subscriptions, against real gRPC servers on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc

from shoal_api.router_state_pb2 import State
from shoal_api.router_state_pb2_grpc import RouterStateServicer, add_RouterStateServicer_to_server
from shoal_operator.router_links import FRESH_S, RouterLinks


class Router(RouterStateServicer):
    """Says each state that is put into its queue; None ends the stream."""

    def __init__(self) -> None:
        self.says: asyncio.Queue[State | None] = asyncio.Queue()

    async def Observe(self, request, context):  # noqa: N802 - gRPC's name
        while (state := await self.says.get()) is not None:
            yield state


@contextlib.asynccontextmanager
async def serving(router: Router, port: int = 0) -> AsyncIterator[int]:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    add_RouterStateServicer_to_server(router, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)


class Listener:
    def __init__(self) -> None:
        self.states: asyncio.Queue[State] = asyncio.Queue()
        self.clock_s = 100.0
        self.links = RouterLinks("test", self.states.put_nowait, now=lambda: self.clock_s)

    async def next(self) -> State:
        return await asyncio.wait_for(self.states.get(), 20)


@contextlib.asynccontextmanager
async def listener() -> AsyncIterator[Listener]:
    made = Listener()
    try:
        yield made
    finally:
        await made.links.close()


def sequences(links: RouterLinks) -> list[tuple[str, int]]:
    return sorted((state.router, state.sequence) for state in links.fresh())


async def test_the_newest_state_of_each_router_counts():
    one, two = Router(), Router()
    async with serving(one) as port_1, serving(two) as port_2, listener() as here:
        here.links.set_routers({"r1": f"127.0.0.1:{port_1}", "r2": f"127.0.0.1:{port_2}"})
        one.says.put_nowait(State(router="r1", sequence=1))
        one.says.put_nowait(State(router="r1", sequence=2))
        two.says.put_nowait(State(router="r2", sequence=1))
        for _ in range(3):
            await here.next()
        assert sequences(here.links) == [("r1", 2), ("r2", 1)]


async def test_a_silent_router_stops_counting():
    router = Router()
    async with serving(router) as port, listener() as here:
        here.links.set_routers({"r": f"127.0.0.1:{port}"})
        router.says.put_nowait(State(router="r", sequence=1))
        await here.next()
        here.clock_s += FRESH_S + 0.1
        assert here.links.fresh() == []


async def test_a_router_that_left_the_list_is_forgotten_at_once():
    router = Router()
    async with serving(router) as port, listener() as here:
        here.links.set_routers({"r": f"127.0.0.1:{port}"})
        router.says.put_nowait(State(router="r", sequence=1))
        await here.next()
        here.links.set_routers({})
        assert here.links.fresh() == []


async def test_an_ended_stream_and_a_restarted_router_are_followed_again():
    router = Router()
    async with listener() as here:
        async with serving(router) as port:
            here.links.set_routers({"r": f"127.0.0.1:{port}"})
            router.says.put_nowait(State(router="r", sequence=1))
            await here.next()
            router.says.put_nowait(None)
            router.says.put_nowait(State(router="r", sequence=2))
            assert (await here.next()).sequence == 2
        again = Router()
        async with serving(again, port):
            again.says.put_nowait(State(router="r", sequence=1))
            assert (await here.next()).sequence == 1
            assert sequences(here.links) == [("r", 1)]


async def test_a_router_that_moved_is_followed_to_its_new_address():
    old, new = Router(), Router()
    async with serving(old) as port_1, serving(new) as port_2, listener() as here:
        here.links.set_routers({"r": f"127.0.0.1:{port_1}"})
        old.says.put_nowait(State(router="r", sequence=9))
        await here.next()
        here.links.set_routers({"r": f"127.0.0.1:{port_2}"})
        new.says.put_nowait(State(router="r", sequence=1))
        await here.next()
        assert sequences(here.links) == [("r", 1)]
