"""The load of router benchmarks: keep-alive clients in closed and open loops. Measures; starts no process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import httptools

KEY = "bench-key"  # ours checks it; the others pass it on


class Client(asyncio.Protocol):
    """One keep-alive connection; `on_first`, `on_done` and `on_failed` are called for each reply."""

    def __init__(self) -> None:
        self.on_first: Callable[[], None] = _nothing
        self.on_done: Callable[[bytes], None] = lambda tail: None
        self.on_failed: Callable[[str], None] = _refuse
        self.events = 0  # of streams
        self._last = b""
        self._first = self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpResponseParser(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting:
            self._waiting = False
            self.on_failed(f"connection lost: {exc}")

    def send(self, request: bytes) -> None:
        self._first = self._waiting = True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self.events += data.count(b"\n\n")
        self._last = self._last[-512:] + data if len(data) < 512 else data
        if self._first:
            self._first = False
            self.on_first()

    def on_message_complete(self) -> None:
        self._waiting = False
        status = self.parser.get_status_code()
        if status == 200:
            self.on_done(self._last)
        else:
            self.on_failed(f"status {status}: {self._last[:200]!r}")


def _nothing() -> None: ...


def _refuse(why: str) -> None:
    raise SystemExit(why)


async def connect(port: int) -> Client:
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    return client


def chat(prompt: str, *, stream: bool = False, max_tokens: int = 1, key: str = KEY) -> bytes:
    """A chat request as a client library would send it."""
    fields = {
        "model": "sim",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "stream": stream,
    }
    body = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()  # as the OpenAI client does
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: shoal\r\nAccept: application/json\r\n"
        f"Content-Type: application/json\r\nUser-Agent: bench/1\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a closed loop."""

    requests: int
    seconds: float
    cpu_seconds: float  # of the process measured

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def cost_us(self) -> float:
        return 1e6 * self.cpu_seconds / max(1, self.requests)


async def closed_loop(
    ports: list[int], requests: list[bytes], seconds: float, cpu: Callable[[], float], connections: int = 32
) -> list[Slice]:
    """`connections` clients that each send on a reply, in ten slices; `cpu` tells seconds on a core.

    One whose connection is cut or whose request fails says so and stops.
    """
    done = 0
    running = True

    def again(client: Client, tail: bytes) -> None:
        nonlocal done
        done += 1
        if running:
            client.send(requests[done % len(requests)])

    clients = [await connect(ports[i % len(ports)]) for i in range(connections)]
    for client in clients:
        client.on_done = partial(again, client)
        client.on_failed = lambda why: print(f"  a client stops: {why}", flush=True)
        client.send(requests[0])
    await asyncio.sleep(0.3)
    slices = await _slices(lambda: done, seconds, cpu)
    running = False
    await asyncio.sleep(0.1)
    for client in clients:
        client.transport.close()
    return slices


async def latencies(port: int, request: bytes, count: int) -> list[float]:
    """Milliseconds of `count` requests, one after the other on one connection, sorted."""
    client = await connect(port)
    done = asyncio.Event()
    client.on_done = lambda tail: done.set()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        client.send(request)
        await done.wait()
        times.append(1000 * (time.perf_counter() - start))
        done.clear()
    client.transport.close()
    return sorted(times)


async def streams(
    port: int, count: int, chunks: int, seconds: float, cpu: Callable[[], float]
) -> list[Slice]:
    """`count` streams at once, begun one after the other, in ten slices; their requests are events, one to a chunk."""
    request = chat("stream", stream=True, max_tokens=chunks)

    def again(client: Client, tail: bytes) -> None:
        client.send(request)

    clients = [await connect(port) for _ in range(count)]
    for client in clients:
        client.on_done = partial(again, client)
        client.send(request)
        await asyncio.sleep(0.5 / count)
    await asyncio.sleep(0.3)
    slices = await _slices(lambda: sum(client.events for client in clients), seconds, cpu)
    for client in clients:
        client.on_done = lambda tail: None
        client.on_failed = lambda why: None
        client.transport.abort()
    return slices


async def _slices(done: Callable[[], int], seconds: float, cpu: Callable[[], float]) -> list[Slice]:
    """What is done in each of ten parts of the time; `cpu` tells seconds on a core."""
    slices = []
    for _ in range(10):
        before, used, start = done(), cpu(), time.perf_counter()
        await asyncio.sleep(seconds / 10)
        slices.append(Slice(done() - before, time.perf_counter() - start, cpu() - used))
    return slices


def percentile(values: list[float], share: float) -> float:
    """Of sorted values."""
    return values[min(len(values) - 1, int(len(values) * share))]
