"""Requests through a running router to scripted replicas, over real sockets, on both event loops."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from shoal_router.http1 import HttpLimits
from shoal_router.listener import ConnectionSettings
from shoal_router.proxy import ProxySettings
from shoal_router.retry import RetryLimits
from shoal_router.timeouts import Timeouts
from tests.router.conftest import Run
from tests.router.scripted import (
    FAST,
    LAST_CHUNK,
    STREAM_BEGUN,
    STREAM_HEAD,
    Client,
    Received,
    Replica,
    Script,
    chat,
    chunk,
    error,
    get,
    not_started,
    post,
    reply,
    rig,
    until,
)

EVENT = b'data: {"choices":[{"delta":{"content":"tok"}}]}\n\n'


def fixed(data: bytes) -> Script:
    """Answer every request with these bytes."""

    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return script


def then_die(*pieces: bytes, wait: float = 0.0) -> Script:
    """Write pieces one by one, then reset the connection."""

    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        await asyncio.sleep(wait)
        writer.transport.abort()
        await asyncio.sleep(1)

    return script


async def forever(request: Received, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


# Passing on


def test_request_body_and_reply_body_go_through_unchanged(run: Run) -> None:
    async def echo(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(request.body, status=200))

    async def scenario() -> None:
        async with rig(Replica(script=echo)) as r:
            for size in (0, 1, 70_000, 3_000_000):
                body = json.dumps(chat("x" * size)).encode() + b"  \n"
                answer = await r.ask(post(body=body))
                assert answer.raw_body == body
                assert r.replicas[0].requests[-1].body == body

    run(scenario())


def test_stream_goes_through_byte_for_byte_while_it_is_made(run: Run) -> None:
    rng = random.Random(5)
    pieces = [chunk(rng.randbytes(rng.randint(1, 3000))) for _ in range(60)]
    pieces = [piece for whole in pieces for piece in (whole[:2], whole[2:])]  # cut inside chunks as well
    step = asyncio.Event()

    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for piece in [*pieces, LAST_CHUNK]:
            step.clear()
            writer.write(piece)
            await step.wait()

    async def scenario() -> None:
        async with rig(Replica(script=script)) as r:
            client = await r.connect()
            client.writer.write(post(body=chat("hi", stream=True)))
            assert (await client.head()).headers["transfer-encoding"] == "chunked"
            for piece in [*pieces, LAST_CHUNK]:
                assert await client.reader.readexactly(len(piece)) == piece, (
                    "each piece arrives before the next is made"
                )
                step.set()
            assert (await client.ask(get("/health"))).status == 200, "the connection goes on"
            client.close()

    run(scenario())


def test_reply_tells_the_replica_and_carries_the_request_id(run: Run) -> None:
    async def scenario() -> None:
        headers = (
            "x-request-id: theirs\r\nx-shoal-replica: forged\r\nconnection: keep-alive\r\nx-kept: yes\r\n"
        )
        async with rig(Replica(script=fixed(reply(b"{}", headers=headers)))) as r:
            answer = await r.ask(post(headers="X-Request-Id: mine\r\n"))
            assert answer.headers["x-shoal-replica"] == r.replicas[0].url
            assert answer.headers["x-request-id"] == "mine"
            assert answer.headers["x-kept"] == "yes"
            assert "connection" not in answer.headers
            assert r.replicas[0].requests[-1].headers["x-request-id"] == "mine"
            made = [(await r.ask(post())).headers["x-request-id"] for _ in range(3)]
            assert len(set(made)) == 3
            assert [request.headers["x-request-id"] for request in r.replicas[0].requests[1:]] == made

    run(scenario())


def test_head_sent_on_is_rebuilt_and_keeps_end_to_end_headers(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica()) as r:
            head = (
                "Authorization: Bearer k\r\nConnection: x-gone\r\nX-Gone: 1\r\nTE: trailers\r\nX-Kept: 1\r\n"
            )
            await r.ask(post("/v1/completions?a=b", headers=head))
            (request,) = r.replicas[0].requests
            assert request.path == "/v1/completions?a=b"
            assert request.headers["host"] == f"127.0.0.1:{r.replicas[0].port}"
            assert request.headers["authorization"] == "Bearer k"
            assert request.headers["x-kept"] == "1"
            assert not {"connection", "x-gone", "te", "transfer-encoding"} & set(request.headers)

    run(scenario())


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize"]
)
def test_every_served_path_reaches_a_replica_of_the_model(run: Run, path: str) -> None:
    async def scenario() -> None:
        async with rig(Replica(models=("m",)), Replica(models=("other",))) as r:
            for _ in range(4):
                answer = await r.ask(post(path, {"model": "other", "prompt": "x", "input": "x"}))
                assert answer.headers["x-shoal-replica"] == r.replicas[1].url
            assert r.replicas[1].requests[0].path == path

    run(scenario())


def test_errors_of_a_replica_are_passed_on_and_4xx_or_429_are_never_retried(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica(), Replica()) as r:
            for status in (400, 404, 422, 429, 503):
                for replica in r.replicas:
                    replica.script = fixed(error(status, "queue_full"))
                    replica.requests.clear()
                for _ in range(6):
                    answer = await r.ask(post())
                    assert (answer.status, answer.code) == (status, "queue_full")
                    assert answer.headers["x-shoal-replica"] in [replica.url for replica in r.replicas]
                assert sum(len(replica.requests) for replica in r.replicas) == 6
            await r.state("healthy", "healthy")

    run(scenario())


def test_three_server_errors_in_a_row_take_a_replica_out(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica(script=fixed(error(500, "internal_error"))), Replica()) as r:
            statuses = [(await r.ask(post())).status for _ in range(40)]
            assert statuses.count(500) == 3
            assert statuses.count(200) == 37

    run(scenario())


def test_idle_connections_to_a_replica_are_used_again(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica()) as r:
            client = await r.connect()
            for _ in range(20):
                assert (await client.ask(post())).status == 200
            assert r.replicas[0].connections == 1
            client.close()

    run(scenario())


def test_connection_that_the_replica_closes_is_not_used_again(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica(script=fixed(reply(b"{}", headers="Connection: close\r\n")))) as r:
            client = await r.connect()
            for _ in range(3):
                answer = await client.ask(post())
                assert answer.status == 200
                assert "connection" not in answer.headers, "its connection is not the client's"
            assert r.replicas[0].connections == 3
            client.close()

    run(scenario())


def test_unframed_reply_ends_with_the_connection_on_both_sides(run: Run) -> None:
    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nfirst")
        await asyncio.sleep(0.01)
        writer.write(b" second")
        writer.write_eof()

    async def scenario() -> None:
        async with rig(Replica(script=script)) as r:
            answer = await r.ask(post())
            assert (answer.status, answer.raw_body) == (200, b"first second")
            assert answer.headers["connection"] == "close"

    run(scenario())


def test_http_1_0_client_gets_an_unchunked_reply_and_a_closed_connection(run: Run) -> None:
    stream = STREAM_HEAD + chunk(EVENT) + chunk(b"data: [DONE]\n\n") + LAST_CHUNK

    async def scenario() -> None:
        async with rig(Replica(script=fixed(stream))) as r:
            client = await r.connect()
            client.writer.write(post(body=chat("hi", stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0"))
            answer = await client.answer()
            assert answer.raw_body == EVENT + b"data: [DONE]\n\n"
            assert "transfer-encoding" not in answer.headers
            assert answer.headers["connection"] == "close"

    run(scenario())


def test_pipelined_requests_are_answered_in_order(run: Run) -> None:
    async def slow_first(request: Received, writer: asyncio.StreamWriter) -> None:
        number = json.loads(request.body)["messages"][0]["content"]
        await asyncio.sleep(0.05 if number == "0" else 0)
        writer.write(reply(request.body))

    async def scenario() -> None:
        async with rig(Replica(script=slow_first)) as r:
            client = await r.connect()
            client.writer.write(
                b"".join(post(body=chat(str(i))) for i in range(5)) + get("/health") + b"junk\r\n\r\n"
            )
            for i in range(5):
                assert (await client.answer()).json["messages"][0]["content"] == str(i)
            assert (await client.answer()).json == {"status": "ok"}
            assert (await client.answer()).status == 400
            assert await client.rest() == b""
            client.close()

    run(scenario())


# Failing before the first byte


def failures() -> dict[str, Script]:
    return {
        "reset": then_die(),
        "head cut": then_die(b"HTTP/1.1 200 OK\r\ncontent-"),
        "not HTTP": fixed(b"SSH-2.0-x\r\n\r\n"),
        "two framings": fixed(
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}"
        ),
        "interim reply": fixed(b"HTTP/1.1 103 Early Hints\r\n\r\n" + reply(b"{}")),
        "draining": fixed(error(503, "draining")),
        "loading": fixed(not_started(503, "loading")),
        "engine gone": fixed(error(503, "engine_unavailable")),
    }


@pytest.mark.parametrize("name", failures())
def test_failure_before_the_first_byte_is_repeated_elsewhere_unseen(run: Run, name: str) -> None:
    async def scenario() -> None:
        async with rig(Replica(script=failures()[name]), Replica()) as r:
            for _ in range(8):
                answer = await r.ask(post())
                assert answer.status == 200
                assert answer.headers["x-shoal-replica"] == r.replicas[1].url
            assert sum(r.router.metrics.retries.values()) >= 1
            assert len(r.replicas[0].requests) <= 2, "it was taken out after the first failure"

    run(scenario())


def test_refused_connection_is_repeated_elsewhere_unseen(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica(), Replica(), Replica()) as r:
            await r.replicas[0].kill()
            await r.replicas[2].kill()
            for _ in range(8):
                answer = await r.ask(post())
                assert answer.headers["x-shoal-replica"] == r.replicas[1].url

    run(scenario())


def test_request_that_kills_two_replicas_is_quarantined(run: Run) -> None:
    async def scenario() -> None:
        async with rig(*[Replica(script=then_die(wait=0.3)) for _ in range(4)]) as r:
            for _ in range(3):
                answer = await r.ask(post())
                assert (answer.status, answer.code) == (500, "request_quarantined")
                assert "600 s" in answer.json["error"]["message"]
            assert sum(len(replica.requests) for replica in r.replicas) == 2
            for replica in r.replicas:
                replica.script = fixed(reply(b"{}"))
            assert (await r.ask(post(body=chat("another")))).status == 200
            assert r.router._proxy.quarantine.total == 1

    run(scenario())


def test_silence_before_the_first_byte_is_repeated_elsewhere(run: Run) -> None:
    async def scenario() -> None:
        settings = replace(FAST, proxy=ProxySettings(timeouts=Timeouts(first_byte_s=0.1)))
        async with rig(Replica(script=forever), Replica(), settings=settings) as r:
            for _ in range(6):
                answer = await r.ask(post(body=chat("hi", stream=True)))
                assert answer.headers["x-shoal-replica"] == r.replicas[1].url
            await until(lambda: r.replicas[0].disconnects == len(r.replicas[0].requests))

    run(scenario())


def test_stale_idle_connection_costs_neither_a_retry_nor_the_replicas_standing(run: Run) -> None:
    async def once(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"{}"))

    async def scenario() -> None:
        async with rig(
            Replica(script=once), settings=replace(FAST, proxy=ProxySettings(RetryLimits(0)))
        ) as r:
            replica = r.replicas[0]
            assert (await r.ask(post())).status == 200
            # The next request on that connection meets one that is being closed: it dies as the bytes arrive.
            first_connection = set(replica.writers)

            async def dies_once(request: Received, writer: asyncio.StreamWriter) -> None:
                if writer in first_connection:
                    writer.transport.abort()
                    await asyncio.sleep(1)
                writer.write(reply(b"{}"))

            replica.script = dies_once
            assert (await r.ask(post())).status == 200
            assert r.router.metrics.retries == {"stale": 1}
            await r.state("healthy")

    run(scenario())


def test_retries_are_bounded_by_the_budget(run: Run) -> None:
    async def scenario() -> None:
        settings = replace(FAST, proxy=ProxySettings(RetryLimits(max_retries=2, budget=0.0)))
        mad = Replica(script=fixed(b"SSH-2.0-x\r\n\r\n"))
        async with rig(mad, Replica(script=forever), settings=settings) as r:
            # Four requests end up retrying on the silent replica; the budget's floor allows three of them.
            clients = [await r.connect() for _ in range(12)]
            for endpoint in r.router.endpoints:
                endpoint.tally.requests = 0
            for client in clients:
                client.writer.write(post())
            await until(lambda: r.router.metrics.retries.total() == 3 or r.router.metrics.errors.total() > 3)
            assert r.router.metrics.retries.total() <= 3
            for client in clients:
                client.reset()

    run(scenario())


def test_all_requests_of_a_replica_that_leaves_move_to_another(run: Run) -> None:
    async def scenario() -> None:
        settings = replace(FAST, proxy=ProxySettings(RetryLimits(max_retries=2, budget=0.0)))
        leaving = Replica(script=fixed(error(503, "draining")))
        async with rig(leaving, Replica(script=forever), settings=settings) as r:
            clients = [await r.connect() for _ in range(12)]
            for client in clients:
                client.writer.write(post())
            await until(lambda: any(each.in_flight == 12 for each in r.router.endpoints))
            assert r.router.metrics.retries.total() > 3
            assert r.router.metrics.errors.total() == 0
            for client in clients:
                client.reset()

    run(scenario())


def test_last_failure_is_told_when_no_other_replica_is_left(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica(script=fixed(error(503, "draining")))) as r:
            answer = await r.ask(post())
            assert (answer.status, answer.code) == (503, "no_replica_ready")
            assert "draining" in answer.json["error"]["message"]
            assert int(answer.headers["retry-after"]) >= 1

    run(scenario())


# Failing after the first byte


@pytest.mark.parametrize("wait", [0.0, 0.3])
def test_stream_of_a_dying_replica_ends_with_a_typed_error_and_never_with_done(run: Run, wait: float) -> None:
    async def scenario() -> None:
        dying = then_die(STREAM_HEAD, chunk(EVENT), chunk(EVENT), wait=wait)
        async with rig(Replica(script=dying), Replica(script=dying)) as r:
            client = await r.connect()
            client.writer.write(post(body=chat("hi", stream=True)))
            await client.head()
            body = await client.rest()
            whole = chunk(EVENT) * 2
            assert body.startswith(whole)
            size, _, event = body[len(whole) :].partition(b"\r\n")
            assert len(event) == int(size, 16) + 2, "one well-formed chunk and no last chunk after it"
            told = json.loads(event.removeprefix(b"data: "))["error"]
            assert (told["type"], told["code"]) == ("replica_lost", "replica_lost")
            assert b"[DONE]" not in body
            assert sum(len(replica.requests) for replica in r.replicas) == 1, "no retry after the first byte"
            assert r.router.metrics.broken_replies == 1

    run(scenario())


CUT = {
    "inside a chunk": [STREAM_HEAD, chunk(EVENT), chunk(EVENT)[:20]],
    "inside a chunk size": [STREAM_HEAD, chunk(EVENT), b"2"],
    "inside an event": [STREAM_HEAD, chunk(EVENT), chunk(EVENT[:20])],
    "not a stream": [reply(b'{"a": 1}')[:-3]],
}


@pytest.mark.parametrize("name", CUT)
def test_reply_cut_where_nothing_can_be_added_is_cut_for_the_client_too(run: Run, name: str) -> None:
    async def scenario() -> None:
        async with rig(Replica(script=then_die(*CUT[name]))) as r:
            client = await r.connect()
            client.writer.write(post(body=chat("hi", stream=True)))
            await client.head()
            sent = b"".join(CUT[name]).partition(b"\r\n\r\n")[2]
            assert await client.rest() == sent

    run(scenario())


def test_bytes_after_the_end_of_a_reply_never_reach_the_client(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica(script=fixed(reply(b"{}") + reply(b'{"forged":1}')))) as r:
            client = await r.connect()
            client.writer.write(post() + get("/health"))
            answer = await client.answer()
            assert (answer.status, answer.code) == (502, "bad_reply")
            assert (await client.answer()).json == {"status": "ok"}
            client.close()

    run(scenario())


def test_stream_that_falls_silent_is_ended_with_an_error(run: Run) -> None:
    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(EVENT))
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with rig(
            Replica(script=script), settings=replace(FAST, proxy=ProxySettings(timeouts=Timeouts(idle_s=0.1)))
        ) as r:
            client = await r.connect()
            client.writer.write(post(body=chat("hi", stream=True)))
            await client.head()
            assert b'"code":"replica_timeout"' in await client.rest()
            await until(lambda: r.replicas[0].disconnects == 1)

    run(scenario())


@pytest.mark.parametrize("begun", [False, True])
def test_request_that_takes_too_long_altogether_is_ended(run: Run, begun: bool) -> None:
    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        if begun:
            writer.write(STREAM_HEAD)
            while True:
                writer.write(chunk(EVENT))
                await writer.drain()
                await asyncio.sleep(0.01)
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with rig(
            Replica(script=script),
            settings=replace(FAST, proxy=ProxySettings(timeouts=Timeouts(total_s=0.2))),
        ) as r:
            client = await r.connect()
            client.writer.write(post())
            answer = await client.head()
            assert answer.status == (200 if begun else 504)
            assert b'"code":"replica_timeout"' in (
                await client.rest()
                if begun
                else await client.reader.readexactly(int(answer.headers["content-length"]))
            )
            await until(lambda: r.replicas[0].disconnects == 1)
            await r.state("healthy")

    run(scenario())


# Clients


async def not_begun(client: Client) -> None:
    await asyncio.sleep(0.02)


async def begun(client: Client) -> None:
    await client.head()


@pytest.mark.parametrize(("point", "stream"), [(not_begun, True), (not_begun, False), (begun, True)])
@pytest.mark.parametrize("how", ["reset", "close"])
def test_client_that_leaves_aborts_the_replicas_work_within_100_ms(
    run: Run, how: str, point: Callable[[Client], Awaitable[None]], stream: bool
) -> None:
    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        if point is begun:
            writer.write(STREAM_BEGUN)
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with rig(Replica(script=script)) as r:
            replica, took = r.replicas[0], []
            for turn in range(1, 4):
                client = await r.connect()
                client.writer.write(post(body=chat("hi", stream=stream)))
                await until(lambda turn=turn: len(replica.requests) == turn)
                await point(client)
                left = asyncio.get_running_loop().time()
                getattr(client, how)()
                await until(lambda turn=turn: replica.disconnects == turn)
                took.append(asyncio.get_running_loop().time() - left)
            assert min(took) < 0.1, "the best of three, for this machine may be busy"
            assert r.router.metrics.client_disconnects == 3
            await r.state("healthy")

    run(scenario())


def test_client_that_leaves_while_connecting_leaves_nothing_behind(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica()) as r:
            for _ in range(20):
                client = await r.connect()
                client.writer.write(post())
                client.reset()
            await until(lambda: not r.router._listener.connections)
            assert r.idle()
            assert (await r.ask(post())).status == 200

    run(scenario())


def test_slow_client_holds_the_replica_back_and_costs_bounded_memory(run: Run) -> None:
    written = 0
    total = 64 * 2**20

    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(STREAM_HEAD)
        piece = chunk(b"x" * 65_536)
        while written < total:
            writer.write(piece)
            written += 65_536
            await writer.drain()
        writer.write(LAST_CHUNK)

    async def scenario() -> None:
        nonlocal written
        async with rig(Replica(script=script)) as r:
            reader, writer = await asyncio.open_connection("127.0.0.1", r.router.port, limit=2**16)
            writer.write(post(body=chat("hi", stream=True)))
            before = -1
            while before != written:
                before = written
                await asyncio.sleep(0.2)
            assert written < total / 2, "the replica was held back by socket buffers alone"
            (connection,) = [c for c in r.router._listener.connections if c._answering]
            assert connection._transport.get_write_buffer_size() < 2**20
            await reader.readuntil(b"\r\n\r\n")
            received = 0
            while piece := await reader.read(2**20):
                received += len(piece)
                if received > total and piece.endswith(LAST_CHUNK):
                    break
            assert received == len(chunk(b"x" * 65_536)) * (total // 65_536) + len(LAST_CHUNK)
            writer.close()

    run(scenario())


def test_client_that_never_reads_is_cut_off_and_its_replica_freed(run: Run) -> None:
    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(chunk(b"x" * 65_536))
            await writer.drain()

    async def scenario() -> None:
        settings = replace(FAST, connection=ConnectionSettings(stalled_client_s=0.2))
        async with rig(Replica(script=script), settings=settings) as r:
            _, writer = await asyncio.open_connection("127.0.0.1", r.router.port, limit=1)
            writer.write(post(body=chat("hi", stream=True)))
            await until(lambda: r.replicas[0].disconnects == 1)
            writer.transport.abort()

    run(scenario())


LATE = {
    "head": (b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\n", 408),
    "body": (post(body=b"x" * 1000)[:-900], 408),
}


@pytest.mark.parametrize("name", LATE)
def test_deadline_of_receipt_is_absolute_for_a_client_that_trickles(run: Run, name: str) -> None:
    async def scenario() -> None:
        settings = replace(FAST, connection=ConnectionSettings(head_timeout_s=0.2, body_timeout_s=0.2))
        async with rig(Replica(), settings=settings) as r:
            client = await r.connect()
            data, status = LATE[name]
            client.writer.write(data)
            trickle = asyncio.ensure_future(trickle_into(client))
            answer = await client.answer()
            assert (answer.status, answer.code) == (status, "request_timeout")
            trickle.cancel()
            client.close()

    run(scenario())


async def trickle_into(client: Client) -> None:
    while True:
        client.writer.write(b"x")
        await asyncio.sleep(0.02)


def test_idle_connection_is_closed_without_a_word(run: Run) -> None:
    async def scenario() -> None:
        settings = replace(FAST, connection=ConnectionSettings(keep_alive_s=0.1))
        async with rig(Replica(), settings=settings) as r:
            client = await r.connect()
            assert await client.rest() == b""
            client = await r.connect()
            assert (await client.ask(post())).status == 200
            assert await client.rest() == b""

    run(scenario())


def test_refusal_reaches_a_client_that_is_still_sending(run: Run) -> None:
    async def scenario() -> None:
        settings = replace(FAST, connection=ConnectionSettings(HttpLimits(body_bytes=1000)))
        async with rig(Replica(), settings=settings) as r:
            client = await r.connect()
            client.writer.write(post(body=b"x" * 5_000_000))
            answer = await client.answer()
            assert (answer.status, answer.code) == (413, "body_too_large")
            assert answer.headers["connection"] == "close"
            client.close()

    run(scenario())


def test_expect_continue_is_answered_before_the_body(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica()) as r:
            client = await r.connect()
            head, _, body = post(headers="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
            client.writer.write(head + b"\r\n\r\n")
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert (await client.ask(body)).status == 200
            assert "expect" not in r.replicas[0].requests[0].headers
            client.close()

    run(scenario())


def test_many_clients_at_once_all_get_their_own_reply(run: Run) -> None:
    async def echo(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.001)
        writer.write(STREAM_HEAD + chunk(request.body) + LAST_CHUNK)

    async def one(r: object, number: int, port: int) -> None:
        client = await Client.connect(port)
        for turn in range(5):
            body = json.dumps(chat(f"{number}-{turn}", stream=True)).encode()
            client.writer.write(post(body=body))
            await client.head()
            expected = chunk(body) + LAST_CHUNK
            assert await client.reader.readexactly(len(expected)) == expected
        client.close()

    async def scenario() -> None:
        async with rig(*[Replica(script=echo) for _ in range(3)]) as r:
            await asyncio.gather(*[one(r, i, r.router.port) for i in range(60)])
            assert sum(len(replica.requests) for replica in r.replicas) == 300

    run(scenario())
