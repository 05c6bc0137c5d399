"""Streams that outlive their replicas, through a running router, over real sockets, on both event loops."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from shoal_router.proxy import ProxySettings
from shoal_router.retry import MAX_DEATHS
from shoal_router.routing import Routing
from shoal_router.settings import RouterSettings
from shoal_router.timeouts import Timeouts
from tests.router.conftest import Run
from tests.router.resumable_engine import (
    DRAINING,
    ENGINE_DEAD,
    OWN_FAULT,
    REFUSALS,
    Engine,
    boundary,
    seen_by_client,
    stream,
)
from tests.router.scripted import (
    FAST,
    LAST_CHUNK,
    Answer,
    Client,
    Received,
    Replica,
    Rig,
    Script,
    chat,
    chunk,
    error,
    get,
    not_started,
    post,
    rig,
    until,
)
from tests.router.test_resumable_relay import Body, cut

STEPS = stream(9)
WHOLE = seen_by_client(STEPS)
ASK = post(body=chat("hi", stream=True))


def fleet(script: Script, count: int = 3) -> list[Replica]:
    return [Replica(script=script) for _ in range(count)]


async def begun(r: Rig, request: bytes = ASK) -> tuple[Client, Answer]:
    client = await r.connect()
    client.writer.write(request)
    return client, await client.head()


async def whole_stream(client: Client) -> bytes:
    """The events of a stream that ends well."""
    framed = await client.reader.readuntil(b"\r\n" + LAST_CHUNK)
    return Body(framed).body


async def told(r: Rig, request: bytes = ASK) -> tuple[bytes, str]:
    """The events and the error of a stream that is broken off, as it must be told."""
    client, _ = await begun(r, request)
    got = Body(await client.rest())
    client.close()
    assert not got.ended, "the body stays unfinished"
    assert b"[DONE]" not in got.body
    events, _, last = got.body.rpartition(b"data: ")
    return events, json.loads(last)["error"]["code"]


def test_any_death_is_unseen_but_for_a_pause(run: Run) -> None:
    rng = random.Random(11)
    size = boundary(STEPS, len(STEPS))

    def pieces(body: bytes) -> list[bytes]:
        return cut(body, [rng.randrange(size) for _ in range(rng.randrange(8))])

    async def scenario() -> None:
        engine = Engine(STEPS, pieces=pieces)
        async with rig(*fleet(engine)) as r:
            for _ in range(60):
                # Each life gets on by an event at least, so that nobody is suspected.
                engine.deaths = [rng.randrange(boundary(STEPS, 2), size) for _ in range(rng.randrange(1, 4))]
                client, head = await begun(r)
                assert head.status == 200
                assert await whole_stream(client) == WHOLE
                assert (await client.ask(get("/health"))).status == 200, "the connection goes on"
                client.close()
            assert r.router.metrics.resumes["resumed"] >= 60
            assert r.router.metrics.resumes.keys() == {"resumed"}
            told = (await r.ask(get("/metrics"))).raw_body.decode()
            assert f'shoal_router_resumes_total{{outcome="resumed"}} {len(engine.resumed_from)}' in told
            assert "shoal_router_interrupted_streams 0" in told
            assert "shoal_router_resume_bytes 0" in told
            assert r.router.metrics.broken_replies == 0
            assert len(engine.bodies) == 1, "the body goes on as it came"
            assert r.router._proxy.kept_bytes == 0

    run(scenario())


@pytest.mark.parametrize("count", range(len(STEPS) + 1))
def test_each_place_between_two_events_is_gone_on_from(run: Run, count: int) -> None:
    async def scenario() -> None:
        engine = Engine(STEPS, [boundary(STEPS, count)])
        async with rig(*fleet(engine)) as r:
            client, _ = await begun(r)
            assert await whole_stream(client) == WHOLE
            # Before the first event the request itself is sent again; behind [DONE] nothing is missing.
            assert engine.resumed_from == ([count] if 0 < count < len(STEPS) else [])
            client.close()

    run(scenario())


def test_the_head_is_that_of_the_first_reply_without_what_the_engine_told_the_router(run: Run) -> None:
    async def scenario() -> None:
        engine = Engine(STEPS, [boundary(STEPS, 3)])
        async with rig(*fleet(engine)) as r:
            client, head = await begun(r)
            first = next(each for each in r.replicas if each.requests)
            assert await whole_stream(client) == WHOLE
            assert head.headers["x-shoal-replica"] == first.url
            assert not {"x-shoal-resume", "x-shoal-resumable"} & set(head.headers)
            client.close()

    run(scenario())


def test_http_1_0_client_gets_an_unchunked_stream_from_two_replicas(run: Run) -> None:
    async def scenario() -> None:
        async with rig(*fleet(Engine(STEPS, [boundary(STEPS, 4) + 7]))) as r:
            client, head = await begun(r, ASK.replace(b"HTTP/1.1", b"HTTP/1.0"))
            assert "transfer-encoding" not in head.headers
            assert await client.rest() == WHOLE

    run(scenario())


WAYS: dict[str, Callable[[Engine], None]] = {
    "ends without [DONE]": lambda engine: setattr(engine, "clean_end", True),
    "says that it drains": lambda engine: setattr(engine, "last_word", DRAINING),
    "says that its engine is dead": lambda engine: setattr(engine, "last_word", ENGINE_DEAD),
    "writes a line that is none": lambda engine: setattr(engine, "last_word", b":shoal what 1\ndata: {}\n\n"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_fail_in_the_middle_is_unseen(run: Run, way: str) -> None:
    async def scenario() -> None:
        engine = Engine(STEPS, [boundary(STEPS, 4)])
        WAYS[way](engine)
        async with rig(*fleet(engine)) as r:
            client, _ = await begun(r)
            assert await whole_stream(client) == WHOLE
            assert engine.resumed_from == [4]
            client.close()

    run(scenario())


def test_broken_http_in_the_middle_is_unseen(run: Run) -> None:
    async def scenario() -> None:
        engine = Engine(STEPS)

        async def breaks(request: Received, writer: asyncio.StreamWriter) -> None:
            if not engine.bodies:
                engine.pieces = lambda body: [body[: boundary(STEPS, 4)], b"zz\r\n", b"more"]
            else:
                engine.pieces = lambda body: [body]
            await engine(request, writer)

        async with rig(*fleet(breaks)) as r:
            client, _ = await begun(r)
            assert await whole_stream(client) == WHOLE
            client.close()

    run(scenario())


def test_stream_that_falls_silent_goes_on_elsewhere(run: Run) -> None:
    async def scenario() -> None:
        engine = Engine(STEPS)

        async def stops(request: Received, writer: asyncio.StreamWriter) -> None:
            if not engine.bodies:
                engine.pieces = lambda body: [body[: boundary(STEPS, 4)]]
                await engine(request, writer)
                await asyncio.Event().wait()
            engine.pieces = lambda body: [body]
            await engine(request, writer)

        settings = replace(FAST, proxy=ProxySettings(timeouts=Timeouts(idle_s=0.15)))
        async with rig(*fleet(stops), settings=settings) as r:
            client, _ = await begun(r)
            assert await whole_stream(client) == WHOLE
            await until(lambda: sum(each.disconnects for each in r.replicas) == 1)
            client.close()

    run(scenario())


def test_an_error_of_the_request_itself_is_passed_on_and_not_tried_elsewhere(run: Run) -> None:
    async def scenario() -> None:
        engine = Engine(STEPS, [boundary(STEPS, 4)], last_word=OWN_FAULT)
        async with rig(*fleet(engine)) as r:
            events, code = await told(r)
            assert (events, code) == (seen_by_client(STEPS[:4]), "logits_not_finite")
            assert engine.resumed_from == []
            await r.state("healthy", "healthy", "healthy")

    run(scenario())


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_to_go_on_is_told_in_the_stream(run: Run, name: str) -> None:
    async def scenario() -> None:
        engine = Engine(STEPS, [boundary(STEPS, 4)], refusal=REFUSALS[name])
        async with rig(*fleet(engine)) as r:
            assert await told(r) == (seen_by_client(STEPS[:4]), "replica_lost")
            assert r.router.metrics.resumes == {"refused": 1}
            assert sum(len(each.requests) for each in r.replicas) == 2

    run(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        not_started(503, "loading"),
        not_started(429, "queue_full"),
        error(503, "engine_unavailable"),
        error(500, "internal_error"),
        b"SSH-2.0-x\r\n\r\n",
    ],
    ids=["loading", "full", "engine dead", "internal error", "not HTTP"],
)
def test_replica_that_cannot_begin_to_go_on_is_passed_over(run: Run, answer: bytes) -> None:
    async def scenario() -> None:
        engine = Engine(STEPS, [boundary(STEPS, 4)])
        turned_away = 0

        async def once(request: Received, writer: asyncio.StreamWriter) -> None:
            nonlocal turned_away
            if "x-shoal-resume" in request.headers and not turned_away:
                turned_away += 1
                writer.write(answer)
            else:
                await engine(request, writer)

        async with rig(*fleet(once)) as r:
            client, _ = await begun(r)
            assert await whole_stream(client) == WHOLE
            assert turned_away == 1
            client.close()

    run(scenario())


def test_replica_of_another_version_is_left_out_for_good(run: Run) -> None:
    async def scenario() -> None:
        engine = Engine(STEPS, [boundary(STEPS, 3), boundary(STEPS[3:], 2)])
        unlike: list[int] = []
        asked: list[int] = []  # of these, once for each time

        def version(number: int) -> Script:
            async def script(request: Received, writer: asyncio.StreamWriter) -> None:
                resumes = "x-shoal-resume" in request.headers
                if resumes and len(unlike) < 2 and number not in unlike:
                    unlike.append(number)
                if resumes and number in unlike:
                    asked.append(number)
                    writer.write(error(409, "resume_mismatch"))
                else:
                    await engine(request, writer)

            return script

        async with rig(*[Replica(script=version(number)) for number in range(4)]) as r:
            client, _ = await begun(r)
            assert await whole_stream(client) == WHOLE
            assert engine.resumed_from == [3, 5]
            assert asked == unlike, "the first one asked, and no more after the second death"
            client.close()

    run(scenario())


def test_stream_that_only_replicas_of_another_version_are_left_for_is_told_so(run: Run) -> None:
    async def scenario() -> None:
        engine = Engine(STEPS, [boundary(STEPS, 3)], refusal=error(409, "resume_mismatch"))
        settings = replace(FAST, routing=Routing(resume_wait_s=0.2))
        async with rig(*fleet(engine), settings=settings) as r:
            assert await told(r) == (seen_by_client(STEPS[:3]), "replica_lost")
            asked = [q for each in r.replicas for q in each.requests if "x-shoal-resume" in q.headers]
            assert len(asked) <= 3

    run(scenario())


# No replica


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
            (proxied,) = [] or await blocked(r)
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


# Bounds


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
