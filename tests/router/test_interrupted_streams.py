"""Streams that no replica can go on with for now, and clients that leave or read slowly meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from shoal_router.routing import Routing
from tests.router.conftest import Run
from tests.router.resumable_engine import (
    Engine,
    boundary,
    seen_by_client,
)
from tests.router.resumed import ASK, STEPS, WHOLE, Body, begun, cut, fleet, whole_stream
from tests.router.scripted import (
    FAST,
    LAST_CHUNK,
    Received,
    Replica,
    Rig,
    rig,
    until,
)


def test_stream_waits_for_its_only_replica_to_come_back(run: Run) -> None:
    async def scenario() -> None:
        engine = Engine(STEPS, [boundary(STEPS, 4)])
        async with rig(Replica(script=engine)) as r:
            client, _ = await begun(r)
            await r.replicas[0].kill()
            await until(lambda: bool(r.router._proxy.interrupted.streams))
            assert r.router._proxy.interrupted.streams.keys() == r.router._proxy.active
            assert all(endpoint.in_flight == 0 for endpoint in r.router.endpoints)
            await r.replicas[0].start()
            assert await whole_stream(client) == WHOLE
            assert not r.router._proxy.interrupted.streams
            client.close()

    run(scenario())


def test_wait_for_a_replica_has_an_end_that_is_told(run: Run) -> None:
    async def scenario() -> None:
        settings = replace(FAST, routing=Routing(resume_wait_s=0.2))
        engine = Engine(STEPS, [boundary(STEPS, 4)])
        async with rig(Replica(script=engine), settings=settings) as r:
            client, _ = await begun(r)
            await r.replicas[0].kill()
            got = Body(await client.rest())
            assert b'"code":"replica_lost"' in got.body or b'"code":"no_replica_ready"' in got.body
            assert not got.ended
            assert r.router.metrics.resumes == {"no_replica": 1}
            assert r.router._proxy.kept_bytes == 0

    run(scenario())


@pytest.mark.parametrize("how", ["reset", "close"])
def test_client_that_leaves_while_its_stream_waits_leaves_nothing_behind(run: Run, how: str) -> None:
    async def scenario() -> None:
        async with rig(Replica(script=Engine(STEPS, [boundary(STEPS, 4)]))) as r:
            client, _ = await begun(r)
            await r.replicas[0].kill()
            await until(lambda: bool(r.router._proxy.interrupted.streams))
            getattr(client, how)()
            await until(lambda: not r.router._proxy.active)
            assert not r.router._proxy.interrupted.streams
            assert r.router._proxy.kept_bytes == 0

    run(scenario())


def test_client_that_leaves_during_the_second_reply_aborts_it(run: Run) -> None:
    async def scenario() -> None:
        engine = Engine(STEPS, [boundary(STEPS, 4)])

        async def hangs(request: Received, writer: asyncio.StreamWriter) -> None:
            if "x-shoal-resume" in request.headers:
                await asyncio.Event().wait()
            await engine(request, writer)

        async with rig(*fleet(hangs, 2)) as r:
            client, _ = await begun(r)
            await until(lambda: sum(len(each.requests) for each in r.replicas) == 2)
            client.reset()
            await until(lambda: sum(each.disconnects for each in r.replicas) >= 1)
            await until(r.idle)
            assert not r.router._proxy.active

    run(scenario())


def test_router_that_drains_still_resumes_its_streams(run: Run) -> None:
    async def scenario() -> None:
        engine = Engine(STEPS, [boundary(STEPS, 4)])
        async with rig(Replica(script=engine)) as r:
            client, _ = await begun(r)
            await r.replicas[0].kill()
            await until(lambda: bool(r.router._proxy.interrupted.streams))
            stopping = asyncio.ensure_future(r.router.stop(5.0))
            await until(lambda: r.router.draining)
            await r.replicas[0].start()
            assert Body(await client.rest()).body == WHOLE
            assert await stopping

    run(scenario())


def test_slow_client_holds_each_replica_back(run: Run) -> None:
    steps = [
        *STEPS[:1],
        *[("tokens", [i], b"data: %b\n\n" % (b"x" * 20_000)) for i in range(800)],
        *STEPS[-3:],
    ]
    whole = seen_by_client(steps)

    async def scenario() -> None:
        engine = Engine(steps, pieces=lambda body: cut(body, list(range(0, len(body), 65_536))))
        async with rig(*fleet(engine, 2)) as r:
            reader, writer = await asyncio.open_connection("127.0.0.1", r.router.port, limit=2**16)
            writer.write(ASK)
            (proxied,) = await blocked(r)
            before = len(proxied._relay.progress.ids)  # type: ignore[attr-defined]
            await asyncio.sleep(0.2)
            assert len(proxied._relay.progress.ids) - before < 200  # type: ignore[attr-defined]
            writing = next(each for each in r.replicas if each.requests)
            for each in list(writing.writers):
                each.transport.abort()  # dies while its client is blocked
            await reader.readuntil(b"\r\n\r\n")
            framed = b""
            while not framed.endswith(LAST_CHUNK):
                framed += await reader.read(2**20)
            assert Body(framed).body == whole
            assert len(engine.resumed_from) == 1
            writer.close()

    async def blocked(r: Rig) -> list[object]:
        await until(lambda: any(each.blocked for each in r.router._proxy.active))
        return list(r.router._proxy.active)

    run(scenario())
