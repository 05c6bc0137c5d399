"""The end of a router, and the end of an engine under it: nobody who asks then notices."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import replace

import pytest

from shoal_router.app import Router
from shoal_router.discovery import StaticDiscovery
from tests.router.cluster import DEPLOYMENTS, PODS, Cluster, llm, pod
from tests.router.conftest import Run
from tests.router.scripted import (
    FAST,
    LAST_CHUNK,
    PING,
    STREAM_BEGUN,
    Client,
    Received,
    Replica,
    chat,
    chunk,
    get,
    not_started,
    post,
    reply,
    rig,
    until,
)
from tests.router.test_held import sleeping
from tests.router.test_kubernetes_discovery import routing

GENTLE = replace(FAST, drain_delay_s=0.4)
END = chunk(b"data: [DONE]\n\n") + LAST_CHUNK


class Service:
    """What kube-proxy does: new connections go to the routers that it believes to be there, in turn."""

    def __init__(self, *ports: int) -> None:
        self.ports = list(ports)
        self._turn = itertools.count()

    async def connect(self) -> Client:
        return await Client.connect(self.ports[next(self._turn) % len(self.ports)])


async def keep_asking(service: Service, done: asyncio.Event) -> int:
    """Ask on one connection for as long as its replies allow; returns how many requests were answered with 200."""
    client, count = await service.connect(), 0
    while not done.is_set():
        answer = await client.ask(post())
        assert answer.status == 200
        count += 1
        if answer.headers.get("connection") == "close":
            client.close()
            client = await service.connect()
        await asyncio.sleep(0.003)
    client.close()
    return count


async def counting(request: Received, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.002)
    writer.write(reply(b"{}"))


def test_clients_that_keep_connections_lose_no_request_when_a_router_ends(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica(script=counting), settings=GENTLE) as r:
            second = Router(GENTLE, StaticDiscovery(r.discovery._addresses), rng=random.Random(1))
            await second.start()
            await until(lambda: all(e.state.value == "healthy" for e in second.endpoints))
            service, done = Service(r.router.port, second.port), asyncio.Event()
            clients = [asyncio.ensure_future(keep_asking(service, done)) for _ in range(20)]
            await asyncio.sleep(0.1)
            stopping = asyncio.ensure_future(second.stop(5.0))
            await asyncio.sleep(0.15)  # the cluster learns of it late
            service.ports = [r.router.port]
            assert await stopping
            await asyncio.sleep(0.1)
            done.set()
            assert min(await asyncio.gather(*clients)) > 5

    run(scenario())


def test_router_that_ends_serves_on_for_a_while_and_says_goodbye_with_each_reply(run: Run) -> None:
    release = asyncio.Event()

    async def slow(request: Received, writer: asyncio.StreamWriter) -> None:
        if b"stream" not in request.body:
            writer.write(reply(b"{}"))
            return
        writer.write(STREAM_BEGUN)
        await release.wait()
        writer.write(END)

    async def scenario() -> None:
        async with rig(Replica(script=slow), settings=GENTLE) as r:
            port = r.router.port
            streaming, idle, late = [await r.connect() for _ in range(3)]
            for client in (idle, late):
                assert (await client.ask(post())).status == 200
            streaming.writer.write(post(body=chat("hi", stream=True)))
            assert "connection" not in (await streaming.head()).headers
            stopping = asyncio.ensure_future(r.router.stop(5.0))
            await until(lambda: r.router._listener.draining)
            assert not r.router.draining, "it still takes requests"
            assert (await r.ask(get("/ready"))).status == 503
            for client in (late, await r.connect()):
                answer = await client.ask(post())
                assert (answer.status, answer.headers["connection"]) == (200, "close")
                assert await client.rest() == b""
            release.set()
            assert await streaming.reader.readexactly(len(PING + END)) == PING + END
            answer = await streaming.ask(post())
            assert (answer.status, answer.headers["connection"]) == (200, "close"), "nobody had told it"
            assert not stopping.done()
            assert await idle.rest() == b""
            assert await stopping
            with pytest.raises(ConnectionError):
                await Client.connect(port)
            for client in (streaming, idle, late):
                client.close()

    run(scenario())


def test_held_requests_are_sent_to_another_router_at_once(run: Run) -> None:
    async def scenario() -> None:
        cluster = Cluster()
        cluster.put(DEPLOYMENTS, sleeping(20, 10))
        async with routing(cluster) as c:
            held = [asyncio.ensure_future(c.ask(post())) for _ in range(5)]
            await until(lambda: c.router.demand.of(("m",))[1] == 5)
            stopping = asyncio.ensure_future(c.router.stop(5.0))
            for answer in await asyncio.wait_for(asyncio.gather(*held), 1):
                assert (answer.status, answer.code) == (503, "draining")
                assert answer.headers["retry-after"] == "1"
                assert answer.headers["connection"] == "close"
            assert await stopping

    run(scenario())


def test_evicted_pod_is_dropped_at_once_and_finishes_what_it_has(run: Run) -> None:
    release = asyncio.Event()

    async def slow(request: Received, writer: asyncio.StreamWriter) -> None:
        if b"stream" in request.body:
            writer.write(STREAM_BEGUN)
        await release.wait()
        writer.write(END if b"stream" in request.body else reply(b'{"whole":1}'))

    async def scenario() -> None:
        cluster, first, second = Cluster(), Replica(script=slow), Replica()
        await first.start()
        await second.start()
        cluster.put(DEPLOYMENTS, llm("m"))
        cluster.put(PODS, pod("a", port=first.port))
        async with routing(cluster) as c:
            await until(lambda: c.states() == {"a": "healthy"})
            stream, whole = [await Client.connect(c.router.port) for _ in range(2)]
            stream.writer.write(post(body=chat("hi", stream=True)))
            await stream.head()
            whole.writer.write(post())
            await until(lambda: len(first.requests) == 2)
            cluster.put(PODS, pod("b", port=second.port))
            await until(lambda: c.states().get("b") == "healthy")
            evicted = pod("a", port=first.port)
            evicted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:30Z"
            cluster.put(PODS, evicted)
            await until(lambda: set(c.states()) == {"b"})
            for _ in range(5):
                assert (await c.ask(post())).headers["x-shoal-replica"] == "b"
            assert [e.in_flight for e in c.router.endpoints.leaving] == [2]
            release.set()
            assert await stream.reader.readexactly(len(PING + END)) == PING + END
            answer = await whole.answer()
            assert (answer.json, answer.headers["x-shoal-replica"]) == ({"whole": 1}, "a")
            assert c.router.endpoints.leaving == []
            await until(lambda: not first.writers)  # its connections were closed after their last reply
            stream.close()
            whole.close()
        for replica in (first, second):
            await replica.kill()

    run(scenario())


def test_engine_that_has_just_begun_to_drain_costs_a_retry_and_no_fault(run: Run) -> None:
    async def refuse(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(not_started(503, "draining"))

    async def scenario() -> None:
        draining, other = Replica(), Replica()
        async with rig(
            draining, other, settings=replace(FAST, health=replace(FAST.health, interval_s=60))
        ) as r:
            draining.script = refuse  # nobody has looked at /ready since
            for i in range(10):
                answer = await r.ask(post(body=chat(f"{i}" * 300)))
                assert (answer.status, answer.headers["x-shoal-replica"]) == (200, other.url)
            assert len(draining.requests) == 1
            assert r.router.metrics.retries == {"refused": 1}
            assert [e.tally.faults for e in r.router.endpoints] == [0, 0]
            assert [e.tally.ejections for e in r.router.endpoints] == [0, 0]

    run(scenario())
