"""Replicas that do what a test tells them, a client that shows the bytes it got, and a router between them.

Everything runs in one event loop on loopback sockets. A script is a coroutine that gets one request and
writes whatever it likes, HTTP or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from shoal_api.names import HEADER_NOT_STARTED
from shoal_router.app import Router
from shoal_router.discovery import Address, StaticDiscovery
from shoal_router.health import HealthSettings
from shoal_router.settings import RouterSettings

FAST = RouterSettings(
    port=0,
    sweep_s=0.02,
    drain_timeout_s=5.0,
    health=HealthSettings(interval_s=0.05, timeout_s=1.0),
)


@dataclass(slots=True)
class Received:
    """One request as a replica got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    raw_head: bytes


Script = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


def reply(body: bytes, status: int = 200, headers: str = "content-type: application/json\r\n") -> bytes:
    """A whole reply with Content-Length."""
    return f"HTTP/1.1 {status} X\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body


def error(status: int, code: str, headers: str = "content-type: application/json\r\n") -> bytes:
    body = {"error": {"message": "m", "type": "t", "param": None, "code": code}}
    return reply(json.dumps(body).encode(), status, headers)


def not_started(status: int, code: str) -> bytes:
    """An engine's refusal before any work."""
    return error(status, code, f"{HEADER_NOT_STARTED}: true\r\n")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
PING = chunk(b": ping\n\n")
STREAM_BEGUN = STREAM_HEAD + PING  # a head alone is withheld by the router: it tells of no admission


async def answer_name(request: Received, writer: asyncio.StreamWriter) -> None:
    """The default script."""
    writer.write(reply(b'{"ok":true}'))


def stream_until(release: asyncio.Event) -> Script:
    """Begins a stream at once, and ends it well when `release` is set."""

    async def slow(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_BEGUN)
        await release.wait()
        writer.write(chunk(b"data: [DONE]\n\n") + LAST_CHUNK)

    return slow


@dataclass(eq=False)
class Replica:
    """A replica on a port of its own; `script` answers what the router passes on."""

    models: tuple[str, ...] = ("m",)
    script: Script = answer_name
    ready: int = 200
    metrics: bytes = b""
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    disconnects: int = 0  # while a script was running
    port: int = 0
    server: asyncio.Server | None = None
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**24)
        self.port = self.server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """Stop listening and reset every connection, as the kernel does for a killed process."""
        if self.server is not None:
            self.server.close()
            self.server = None
        for writer in list(self.writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        counted = False
        try:
            while True:
                request = await _read_request(reader)
                if request.path in ("/ready", "/health", "/v1/models", "/metrics"):
                    writer.write(self._control(request.path))
                    continue
                self.connections += not counted
                counted = True
                self.requests.append(request)
                await self._run_script(request, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    async def _run_script(
        self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        script = asyncio.ensure_future(self.script(request, writer))
        gone = asyncio.ensure_future(_until_eof(reader))
        await asyncio.wait((script, gone), return_when=asyncio.FIRST_COMPLETED)
        # uvloop raises RuntimeError for a write to a connection that has just been lost.
        if not script.done() or isinstance(script.exception(), ConnectionError | RuntimeError):
            self.disconnects += 1
            script.cancel()
            raise ConnectionResetError
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
        script.result()

    def _control(self, path: str) -> bytes:
        if path == "/v1/models":
            data = [{"id": name, "object": "model", "owned_by": "shoal"} for name in self.models]
            return reply(json.dumps({"object": "list", "data": data}).encode())
        if path == "/metrics":
            return reply(self.metrics, headers="content-type: text/plain\r\n")
        return reply(b"{}", self.ready)


async def _until_eof(reader: asyncio.StreamReader) -> None:
    while not reader.at_eof():
        await asyncio.sleep(0.002)


async def _read_request(reader: asyncio.StreamReader) -> Received:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(method, path, headers, body, head)


@dataclass(slots=True)
class Answer:
    """A reply as the client got it. `raw_body` is what came after the head, framing and all."""

    status: int
    headers: dict[str, str]
    raw_body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw_body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


def post(
    path: str = "/v1/chat/completions", body: bytes | dict[str, Any] | None = None, headers: str = ""
) -> bytes:
    """The bytes of a request."""
    if body is None:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: r\r\n{headers}Content-Length: {len(data)}\r\n\r\n".encode() + data


def get(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: r\r\n{headers}\r\n".encode()


def chat(content: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}], **fields}


class Client:
    """One connection to the router."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**24))

    async def ask(self, request: bytes) -> Answer:
        """Send a request and read one reply with Content-Length."""
        self.writer.write(request)
        return await self.answer(head_only=request.startswith(b"HEAD"))

    async def head(self) -> Answer:
        """Read the head of a reply."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        assert len(headers) == len(lines), f"a header twice: {lines}"
        return Answer(int(first.split(" ")[1]), headers, b"")

    async def answer(self, *, head_only: bool = False) -> Answer:
        got = await self.head()
        if head_only:
            return got
        length = got.headers.get("content-length")
        body = await self.reader.readexactly(int(length)) if length else await self.reader.read()
        return replace(got, raw_body=body)

    async def rest(self) -> bytes:
        """Everything up to the end of the connection, however it ends."""
        data = b""
        with contextlib.suppress(ConnectionError):
            while piece := await self.reader.read(2**16):
                data += piece
        return data

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


@dataclass
class Rig:
    """A running router with its replicas."""

    router: Router
    discovery: StaticDiscovery
    replicas: tuple[Replica, ...]

    async def connect(self) -> Client:
        return await Client.connect(self.router.port)

    async def ask(self, request: bytes) -> Answer:
        """One request on a connection of its own."""
        client = await self.connect()
        try:
            return await client.ask(request)
        finally:
            client.close()

    async def state(self, *states: str) -> None:
        """Wait until the replicas are in these states."""
        await until(lambda: [e.state.value for e in self.router.endpoints] == list(states))

    def idle(self) -> bool:
        """Whether every account is balanced: nothing is in flight anywhere."""
        return all(e.in_flight == 0 and e.queued_tokens == 0 and not e.waiting for e in self.router.endpoints)


async def until(true: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait for something that other tasks bring about."""
    async with asyncio.timeout(timeout_s):
        while not true():
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def rig(
    *replicas: Replica, settings: RouterSettings = FAST, wait: bool = True, seed: int = 0, **parts: Any
) -> AsyncIterator[Rig]:
    """A router over running replicas, ready when `wait`; checks that every account is balanced at the end.

    `parts` are further arguments of Router.
    """
    for replica in replicas:
        await replica.start()
    discovery = StaticDiscovery([Address.from_url(replica.url) for replica in replicas])
    router = Router(settings, discovery, rng=random.Random(seed), **parts)
    await router.start()
    made = Rig(router, discovery, replicas)
    try:
        if wait:
            await until(lambda: all(e.state.value == "healthy" for e in router.endpoints))
        yield made
        await until(made.idle)
    finally:
        await router.stop(1.0)
        for replica in replicas:
            await replica.kill()
