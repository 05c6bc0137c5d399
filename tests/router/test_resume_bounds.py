"""What is not resumed, or no more: deaths, bytes, time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from shoal_router.proxy import ProxySettings
from shoal_router.retry import MAX_DEATHS
from shoal_router.routing import Routing
from shoal_router.settings import RouterSettings
from shoal_router.timeouts import Timeouts
from tests.router.conftest import Run
from tests.router.resumable_engine import (
    Engine,
    boundary,
    seen_by_client,
    stream,
)
from tests.router.resumed import ASK, STEPS, begun, fleet, told, whole_stream
from tests.router.scripted import (
    FAST,
    Received,
    chunk,
    rig,
    until,
)


def test_request_that_two_replicas_die_of_in_mid_stream_is_quarantined(run: Run) -> None:
    async def scenario() -> None:
        first = boundary(STEPS, 3)
        engine = Engine(STEPS, [first, 0, 0])  # gets on once, then kills who takes it
        async with rig(*fleet(engine, 4)) as r:
            assert await told(r) == (seen_by_client(STEPS[:3]), "request_quarantined")
            assert sum(len(each.requests) for each in r.replicas) == 3
            answer = await r.ask(ASK)
            assert (answer.status, answer.code) == (500, "request_quarantined")
            assert r.router.metrics.resumes["quarantined"] == 1

    run(scenario())


def test_stream_of_too_many_deaths_is_given_up(run: Run) -> None:
    steps = stream(60)

    async def scenario() -> None:
        one = boundary(steps, 3)
        engine = Engine(steps, [one] * (MAX_DEATHS + 1))
        async with rig(*fleet(engine, 3)) as r:
            _, code = await told(r)
            assert code == "replica_lost"
            assert r.router.metrics.resumes == {"resumed": MAX_DEATHS, "given_up": 1}
            assert len(r.router._proxy.quarantine) == 0

    run(scenario())


@pytest.mark.parametrize(
    "settings",
    [
        replace(FAST, routing=Routing(resume=False)),
        replace(FAST, proxy=ProxySettings(resume_bytes=10)),
    ],
    ids=["switched off", "too many bytes"],
)
def test_stream_that_may_not_be_kept_is_not_resumable(run: Run, settings: RouterSettings) -> None:
    async def plain(request: Received, writer: asyncio.StreamWriter) -> None:
        assert "x-shoal-resumable" not in request.headers
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        writer.write(chunk(STEPS[0][2]))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.transport.abort()
        await asyncio.sleep(1)

    async def scenario() -> None:
        async with rig(*fleet(plain), settings=settings) as r:
            assert await told(r) == (STEPS[0][2], "replica_lost")
            assert r.router._proxy.kept_bytes == 0

    run(scenario())


def test_bodies_are_counted_while_they_are_kept_and_only_then(run: Run) -> None:
    release = asyncio.Event()

    async def scenario() -> None:
        engine = Engine(STEPS)

        async def held(request: Received, writer: asyncio.StreamWriter) -> None:
            await release.wait()
            await engine(request, writer)

        async with rig(*fleet(held, 2)) as r:
            proxy = r.router._proxy
            clients = [await r.connect() for _ in range(3)]
            for client in clients:
                client.writer.write(ASK)
            await until(lambda: sum(each.in_flight for each in r.router.endpoints) == 3)
            assert proxy.kept_bytes == 3 * len(ASK.partition(b"\r\n\r\n")[2])
            clients[0].reset()
            await until(lambda: proxy.kept_bytes == 2 * len(ASK.partition(b"\r\n\r\n")[2]))
            release.set()
            for client in clients[1:]:
                await client.head()
                await whole_stream(client)
                client.close()
            await until(lambda: proxy.kept_bytes == 0)

    run(scenario())


def test_engine_is_told_how_long_the_request_may_still_take(run: Run) -> None:
    async def scenario() -> None:
        settings = replace(FAST, proxy=ProxySettings(timeouts=Timeouts(total_s=60.0)))
        async with rig(*fleet(Engine(STEPS, [boundary(STEPS, 4)]), 2), settings=settings) as r:
            client, _ = await begun(r)
            await whole_stream(client)
            client.close()
            left = [int(q.headers["x-shoal-timeout-ms"]) for each in r.replicas for q in each.requests]
            assert len(left) == 2
            assert 50_000 < min(left) < max(left) <= 60_000, (
                "the deadline is the request's, not the attempt's"
            )

    run(scenario())
