"""A client that sends chat requests at a steady rate and remembers how each one ended.

It sends no request twice: whatever an application would see, it records. It judges a request, not a cluster.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

import httpx

TIMEOUT_S = (
    240.0  # longer than any engine takes to load: a request that hangs for ever fails, a held one does not
)


@dataclass(slots=True)
class Record:
    """One request. Times are seconds since the epoch; None is an event that never came."""

    id: str
    streamed: bool
    sent_s: float
    question: str = ""
    first_byte_s: float | None = None
    ended_s: float | None = None
    status: int | None = None
    text: str = ""
    done: bool = False  # a stream's [DONE], or a whole plain answer
    error: str | None = None  # code of the API's error, else the name of the client's exception
    replica: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return self.status is None or not 200 <= self.status < 300 or not self.done or self.error is not None

    @property
    def started(self) -> bool:
        """Whether the client has seen a part of the answer's text."""
        return bool(self.text)

    def __str__(self) -> str:
        kind = "stream" if self.streamed else "plain"
        lasted = "never ended" if self.ended_s is None else f"{self.ended_s - self.sent_s:.2f} s"
        return (
            f"{self.id} {kind} at {self.sent_s:.2f}: {self.status} {self.error or ''} {lasted}, {self.text!r}"
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run came to. Latencies in seconds, of requests that did not fail."""

    requests: int
    streams: int
    failed: tuple[Record, ...]
    duration_s: float
    first_byte_p50_s: float
    first_byte_p99_s: float
    replicas: int  # different ones that answered

    def __str__(self) -> str:
        kinds = Counter(f"{each.status} {each.error or 'cut off'}" for each in self.failed)
        why = "".join(f", {count} x {kind}" for kind, count in kinds.items())
        rate = self.requests / self.duration_s if self.duration_s else 0.0
        return (
            f"{self.requests} requests ({self.streams} streams) in {self.duration_s:.0f} s, {rate:.1f}/s, "
            f"{len(self.failed)} failed{why}; first byte p50 {self.first_byte_p50_s:.2f} s "
            f"p99 {self.first_byte_p99_s:.2f} s; {self.replicas} replicas answered"
        )


def summary(records: Sequence[Record]) -> Summary:
    """Of requests that have all ended."""
    begin = min((each.sent_s for each in records), default=0.0)
    end = max((each.ended_s or each.sent_s for each in records), default=0.0)
    waits = sorted(
        each.first_byte_s - each.sent_s for each in records if each.first_byte_s and not each.failed
    )
    return Summary(
        requests=len(records),
        streams=sum(each.streamed for each in records),
        failed=tuple(each for each in records if each.failed),
        duration_s=end - begin,
        first_byte_p50_s=_quantile(waits, 0.5),
        first_byte_p99_s=_quantile(waits, 0.99),
        replicas=len({each.replica for each in records if each.replica}),
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class LoadClient:
    """Every second request is a stream. Connections are kept alive and shared, as applications do it."""

    def __init__(
        self, base_url: str, models: Iterable[str], *, max_tokens: int = 16, concurrency: int = 96
    ) -> None:
        """`base_url` ends in /v1. `models` take turns."""
        self.records: list[Record] = []
        self._models = itertools.cycle(models)
        self._max_tokens = max_tokens
        self._room = asyncio.Semaphore(concurrency)
        self._http = httpx.AsyncClient(
            base_url=base_url,
            timeout=TIMEOUT_S,
            limits=httpx.Limits(max_connections=concurrency),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def run(self, rate: float, stop: asyncio.Event) -> None:
        """`rate` requests a second until `stop`; returns when the last one has ended.

        While `concurrency` requests are open no further one is sent: overload then shows as a lower rate.
        """
        begin = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number in itertools.count():
                await _until(begin + number / rate, stop)
                await self._room.acquire()
                if stop.is_set():
                    break
                tasks.create_task(self._within_room(streamed=number % 2 == 0))

    async def burst(self, count: int) -> None:
        """`count` requests at once; returns when the last one has ended."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                await self._room.acquire()
                tasks.create_task(self._within_room(streamed=number % 2 == 0))

    async def ask_all(self, questions: Iterable[str]) -> None:
        """Each as a stream; returns when the last one has ended."""
        async with asyncio.TaskGroup() as tasks:
            for question in questions:
                await self._room.acquire()
                tasks.create_task(self._within_room(streamed=True, question=question))

    async def _within_room(self, *, streamed: bool, question: str = "") -> None:
        try:
            await self.ask(next(self._models), streamed=streamed, question=question)
        finally:
            self._room.release()

    async def ask(self, model: str, *, streamed: bool, question: str = "") -> Record:
        """One request, by default with a question of its own. Never raises for what a server or a network does."""
        question = question or f"Tell me something about the number {len(self.records) + 1}."
        record = Record(f"e2e-{uuid.uuid4().hex[:12]}", streamed, time.time(), question)
        self.records.append(record)
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self._max_tokens,
            "temperature": 0,
            "stream": streamed,
        }
        request = self._http.build_request(
            "POST", "chat/completions", json=body, headers={"x-request-id": record.id}
        )
        try:
            await self._exchange(request, record)
        except httpx.HTTPError as error:
            # A server that says in band what went wrong may well cut the connection after it.
            record.error = record.error or type(error).__name__
        except (ValueError, LookupError) as error:
            record.error = record.error or f"unreadable answer: {error!r}"
        record.ended_s = time.time()
        return record

    async def _exchange(self, request: httpx.Request, record: Record) -> None:
        reply = await self._http.send(request, stream=True)
        try:
            record.status, record.headers = reply.status_code, dict(reply.headers)
            record.replica = reply.headers.get("x-shoal-replica", "")
            if record.streamed and reply.is_success:
                async for line in reply.aiter_lines():
                    record.first_byte_s = record.first_byte_s or time.time()
                    read_event(line, record)
            else:
                body = await reply.aread()
                record.first_byte_s = time.time()
                read_answer(body, record)
        finally:
            await reply.aclose()


def read_event(line: str, record: Record) -> None:
    """One line of a stream. Raises ValueError or LookupError if it is no event of the API."""
    if not line.startswith("data:"):
        return
    data = line.removeprefix("data:").strip()
    if data == "[DONE]":
        record.done = True
        return
    event = json.loads(data)
    if "error" in event:
        record.error = _error_code(event)
    for choice in event.get("choices", ()):
        record.text += choice.get("delta", {}).get("content") or ""


def read_answer(body: bytes, record: Record) -> None:
    """A whole answer, or an error's body. Raises ValueError or LookupError if it is neither."""
    answer = json.loads(body)
    if "error" in answer:
        record.error = _error_code(answer)
        return
    choice = answer["choices"][0]
    record.text, record.done = choice["message"]["content"] or "", bool(choice["finish_reason"])


def _error_code(event: dict[str, object]) -> str:
    error = event["error"]
    return str(error.get("code") or error.get("type") or error) if isinstance(error, dict) else str(error)


async def _until(moment: float, stop: asyncio.Event) -> None:
    """Until that time of the monotonic clock, or `stop`."""
    try:
        await asyncio.wait_for(stop.wait(), max(0.0, moment - time.monotonic()))
    except TimeoutError:
        return
