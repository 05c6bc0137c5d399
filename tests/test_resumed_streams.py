"""Real engines behind a real router: a replica dies in the middle of an answer, and its client cannot tell.

The engines run in the test's process, each with a server on a port; a death is what the kernel makes of one: every
connection reset, nobody listens. `benchmarks/router/kills.py` kills processes, and takes longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from shoal_engine.server.app import build_app
from shoal_engine.server.envelope import Keys
from shoal_engine.server.http_server import HttpServer, listen
from shoal_router.app import Router
from shoal_router.discovery import Address, StaticDiscovery
from tests.engine.server.in_process import Replica, prompts, replica
from tests.engine.server.streams import CHAT, COMPLETIONS, DRAWN, asked, content_of
from tests.router.scripted import FAST, Client, post, until

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy chat": (CHAT, {"temperature": 0.0}),
    "seeded chat with log probabilities": (CHAT, {**DRAWN, "logprobs": True, "top_logprobs": 2}),
    "seeded completion": (
        COMPLETIONS,
        {"seed": 3, "temperature": 0.9, "top_p": 0.8, "presence_penalty": 0.7},
    ),
    "stop string": (COMPLETIONS, {**DRAWN, "stop": ["STOP"]}),
    "drawn without a seed of the client's": (CHAT, {"temperature": 1.0}),
}


@pytest.fixture(autouse=True, scope="module")
def closed_prompts() -> Iterator[None]:
    yield
    prompts().close()
    prompts.cache_clear()


class Server:
    """One replica on a port that can die and come back."""

    def __init__(self, served: Replica) -> None:
        self._app = build_app(served.service, Keys(()))
        self._limits = served.service.limits
        self._http: HttpServer | None = None
        self._task: asyncio.Task[None] | None = None
        self.port = 0
        self.answers = served.service.answers

    async def start(self) -> None:
        listener = listen("127.0.0.1", self.port)
        self.port = listener.getsockname()[1]
        self._http = HttpServer.of(self._app, self._limits, 0.0)
        self._task = asyncio.create_task(self._http.serve(sockets=[listener]))
        await until(lambda: self._http is not None and self._http.started)

    async def die(self) -> None:
        assert self._http is not None
        assert self._task is not None
        for connection in list(self._http.server_state.connections):
            connection.transport.abort()
        self._http.end()
        await self._task


@contextlib.asynccontextmanager
async def fleet(count: int) -> AsyncIterator[tuple[Router, list[Server]]]:
    async with contextlib.AsyncExitStack() as stack:
        servers = [Server(await stack.enter_async_context(replica(number))) for number in range(count)]
        for server in servers:
            await server.start()
        addresses = [Address.from_url(f"http://127.0.0.1:{server.port}") for server in servers]
        router = Router(FAST, StaticDiscovery(addresses), rng=random.Random(0))
        await router.start()
        await until(lambda: all(endpoint.state.value == "healthy" for endpoint in router.endpoints))
        try:
            yield router, servers
        finally:
            await router.stop(1.0)
            for server in servers:
                await server.die()


class Stream:
    """One client's stream, event by event."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.data: list[bytes] = []

    @classmethod
    async def ask(cls, router: Router, path: str, body: dict[str, Any]) -> Stream:
        client = await Client.connect(router.port)
        client.writer.write(post(path, {"model": "tiny", **body}, "Content-Type: application/json\r\n"))
        head = await client.head()
        assert head.status == 200
        return cls(client)

    async def read(self, events: int = 10_000) -> None:
        """Read so many more, or to the end."""
        for _ in range(events):
            size = int(await self.client.reader.readline(), 16)
            piece = await self.client.reader.readexactly(size + 2)
            if not size:
                self.client.close()
                return
            assert b":shoal" not in piece
            self.data += [event.removeprefix(b"data: ") for event in piece[:-2].split(b"\n\n")[:-1]]

    def content(self) -> dict[str, Any]:
        found = content_of(self.data)
        del found["head"]  # an id and a time of its own
        if found["usage"]:
            found["usage"].pop("prompt_tokens_details")
        return found


@pytest.mark.parametrize("name", CASES)
async def test_death_in_the_middle_of_an_answer_is_unseen(name: str) -> None:
    path, fields = CASES[name]
    body = asked(path, {**fields, "max_tokens": 24})
    async with fleet(2) as (router, servers):
        undisturbed = await Stream.ask(router, path, body)
        await undisturbed.read()
        deaths = 0
        for events in (1, 6):
            stream = await Stream.ask(router, path, body)
            await stream.read(events)
            (writing,) = [server for server in servers if server.answers] or [None]
            if writing is not None:
                await writing.die()
                deaths += 1
            await stream.read()
            heads = {json.dumps(json.loads(each).get("id")) for each in stream.data if each != b"[DONE]"}
            assert len(heads) == 1, "one answer has one id"
            if "seed" in fields or fields.get("temperature") == 0.0:
                assert stream.content() == undisturbed.content()
            assert stream.content()["ends"].count("done") == 1
            if writing is not None:
                await writing.start()
                await until(
                    lambda: all(each.state.value in ("healthy", "half_open") for each in router.endpoints)
                )
        assert deaths >= 1
        assert router.metrics.resumes["resumed"] >= 1
        assert router.metrics.broken_replies == 0
