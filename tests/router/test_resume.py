"""Streams that outlive their replicas, through a running router, over real sockets, on both event loops."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from shoal_router.proxy import ProxySettings
from shoal_router.routing import Routing
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
)
from tests.router.resumed import ASK, STEPS, WHOLE, begun, cut, fleet, told, whole_stream
from tests.router.scripted import (
    FAST,
    Received,
    Replica,
    Script,
    error,
    get,
    not_started,
    rig,
    until,
)


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
