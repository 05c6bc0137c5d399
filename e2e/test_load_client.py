"""The load client against a server that answers in every way, right and wrong: it must notice each."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from e2e.load_client import LoadClient, summary

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
LOST = b'data: {"error":{"message":"gone","type":"replica_lost","code":"replica_lost"}}\n\n'
PLAIN = b'{"choices":[{"message":{"content":"word"},"finish_reason":"stop"}]}'

Answer = Callable[[bool], bytes]


def reply(
    body: bytes, *, status: str = "200 OK", headers: str = "x-shoal-replica: r0\r\n", missing: int = 0
) -> bytes:
    """`missing`: bytes that the head announces and that never come."""
    return f"HTTP/1.1 {status}\r\n{headers}content-length: {len(body) + missing}\r\n\r\n".encode() + body


def good(streamed: bool) -> bytes:
    return reply(EVENT * 3 + DONE) if streamed else reply(PLAIN)


@asynccontextmanager
async def server(answer: Answer, connections: list[int] | None = None) -> AsyncIterator[str]:
    """Each connection is counted in `connections`; one that was told `connection: close` or a short body ends."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if connections is not None:
            connections.append(1)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
                )
                body = json.loads(await reader.readexactly(int(length.split(b":")[1])))
                sent = answer(body["stream"])
                writer.write(sent)
                await writer.drain()
                announced = int(sent.split(b"content-length: ")[1].split(b"\r\n")[0])
                if b"connection: close" in sent or len(sent.split(b"\r\n\r\n", 1)[1]) < announced:
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        listening.close()


async def burst(answer: Answer, count: int = 10) -> LoadClient:
    async with server(answer) as url, LoadClient(url, ["m"]) as client:
        await client.burst(count)
    return client


async def test_good_answers_are_no_failures() -> None:
    client = await burst(good)
    total = summary(client.records)
    assert (total.requests, total.streams, total.failed, total.replicas) == (10, 5, (), 1)
    assert {each.text for each in client.records} == {"wordwordword", "word"}
    assert len({each.id for each in client.records}) == 10
    assert all(each.sent_s <= (each.first_byte_s or 0) <= (each.ended_s or 0) for each in client.records)


@pytest.mark.parametrize(
    ("answer", "error", "status"),
    [
        (lambda streamed: reply(EVENT * 3) if streamed else reply(b'{"choices":[]}'), None, 200),
        (
            lambda streamed: reply(EVENT, missing=9) if streamed else reply(PLAIN, missing=9),
            "RemoteProtocolError",
            200,
        ),
        (lambda streamed: reply(EVENT + LOST), "replica_lost", 200),
        (lambda streamed: reply(EVENT + LOST, missing=9), "replica_lost", 200),
        (
            lambda streamed: reply(b'{"error":{"code":"no_replica_ready"}}', status="503 No"),
            "no_replica_ready",
            503,
        ),
    ],
    ids=["stream without [DONE]", "cut connection", "error in band", "error in band, then cut", "503"],
)
async def test_each_bad_answer_is_a_failure(answer: Answer, error: str | None, status: int) -> None:
    client = await burst(answer)
    assert len(summary(client.records).failed) == 10
    streams = [each for each in client.records if each.streamed]
    assert {(each.error, each.status, each.done) for each in streams} == {(error, status, False)}


async def test_a_server_that_is_not_there_is_a_failure_sent_once() -> None:
    async with LoadClient("http://127.0.0.1:9/v1", ["m"]) as client:
        await client.burst(4)
    assert [(each.status, each.error) for each in client.records] == [(None, "ConnectError")] * 4


async def test_connections_are_kept_and_closed_when_told() -> None:
    for header, expected in (("", 1), ("connection: close\r\n", 3)):
        connections: list[int] = []
        body = reply(PLAIN, headers=header)
        fixed = functools.partial(_same, body)
        async with server(fixed, connections) as url, LoadClient(url, ["m"]) as client:
            for _ in range(3):
                await client.ask("m", streamed=False)
        assert len(connections) == expected
        assert not summary(client.records).failed


def _same(body: bytes, streamed: bool) -> bytes:
    return body


async def test_the_rate_is_steady() -> None:
    async with server(good) as url, LoadClient(url, ["m"]) as client:
        stop = asyncio.Event()
        running = asyncio.create_task(client.run(50.0, stop))
        await asyncio.sleep(0.5)
        stop.set()
        await running
    assert 20 <= len(client.records) <= 26
    gaps = [b.sent_s - a.sent_s for a, b in zip(client.records, client.records[1:], strict=False)]
    assert sorted(gaps)[len(gaps) // 2] == pytest.approx(0.02, abs=0.01)


async def test_no_more_than_concurrency_are_open() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.4)
        writer.close()

    listening = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with LoadClient(f"http://127.0.0.1:{port}/v1", ["m"], concurrency=3) as client:
        stop = asyncio.Event()
        running = asyncio.create_task(client.run(100.0, stop))
        await asyncio.sleep(0.2)
        assert len(client.records) == 3
        stop.set()
        await running
    listening.close()
