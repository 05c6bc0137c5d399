"""Clients that send when they want to, not when they are answered: what a router meets when too much is asked of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import httptools

WARM_UP_S = 3.0


@dataclass(slots=True)
class Outcomes:
    """What became of one tenant's requests; times in seconds, as its clients saw them."""

    sent: int = 0
    completed: int = 0  # within the time measured
    ttft_s: list[float] = field(default_factory=list)  # of accepted ones
    reject_s: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    retry_after_s: list[int] = field(default_factory=list)
    broken: int = 0


class OpenClient(asyncio.Protocol):
    """A keep-alive connection for one request at a time."""

    def __init__(self, tenant: OpenTenant) -> None:
        self._tenant = tenant
        self._sent_s = 0.0
        self._busy = self._first = False
        self._retry_after = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._busy:
            self._tenant.outcomes.broken += 1
        self._busy = True

    @property
    def usable(self) -> bool:
        return not self._busy and not self.transport.is_closing()

    def send(self, request: bytes) -> None:
        self._busy = self._first = True
        self._sent_s = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self._retry_after = value

    def on_body(self, data: bytes) -> None:
        if self._first and self._parser.get_status_code() == 200:
            self._tenant.outcomes.ttft_s.append(time.perf_counter() - self._sent_s)
        self._first = False

    def on_message_complete(self) -> None:
        self._busy = False
        outcomes, status = self._tenant.outcomes, self._parser.get_status_code()
        outcomes.statuses[status] = outcomes.statuses.get(status, 0) + 1
        if status == 200:
            outcomes.completed += self._tenant.measuring
        else:
            outcomes.reject_s.append(time.perf_counter() - self._sent_s)
            outcomes.retry_after_s.append(int(self._retry_after or b"-1"))
        self._tenant.ended(self)


class OpenTenant:
    """Poisson arrivals of one tenant's requests, each on an idle connection or a new one."""

    def __init__(self, port: int, request: Callable[[random.Random], bytes], seed: int) -> None:
        self.outcomes = Outcomes()
        self.idle: list[OpenClient] = []
        self.ended: Callable[[OpenClient], None] = self.idle.append  # called when a reply is complete
        self.measuring = True
        self._port = port
        self._request = request
        self._rng = random.Random(seed)
        self._opening: set[asyncio.Task[None]] = set()

    async def run(self, rate: float, seconds: float) -> None:
        """Send for so long; late sends are caught up, so that the rate holds on a busy machine."""
        start = time.perf_counter()
        due = start
        while due < start + seconds:
            pause = due - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            self._send()
            due += self._rng.expovariate(rate)
        self.measuring = False

    async def saturate(self, connections: int, seconds: float) -> float:
        """So many clients, each sending on a reply; returns requests per second after the first few seconds."""
        self.ended = lambda client: client.send(self._request(self._rng))
        for _ in range(connections):
            self._send()
        await asyncio.sleep(WARM_UP_S)
        before, start = self.outcomes.completed, time.perf_counter()
        await asyncio.sleep(seconds)
        rate = (self.outcomes.completed - before) / (time.perf_counter() - start)
        self.ended = self.idle.append
        await asyncio.sleep(WARM_UP_S)
        return rate

    async def close(self) -> None:
        await asyncio.gather(*self._opening, return_exceptions=True)
        for client in self.idle:
            client.transport.close()

    def _send(self) -> None:
        request = self._request(self._rng)
        self.outcomes.sent += 1
        while self.idle:
            client = self.idle.pop()
            if client.usable:
                client.send(request)
                return
        task = asyncio.get_running_loop().create_task(self._open(request))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: OpenClient(self), "127.0.0.1", self._port)
        client.send(request)
