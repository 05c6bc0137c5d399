"""One generating request from admission to its last byte: waits for the engine, writes to the client, cleans
up.

The status is sent only when the engine has produced a first token, or an error: until then an error is a real
HTTP status and a router may try another replica. Whatever way it ends, the engine stops computing for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shoal_engine.choice_text import ChoiceText, Delta
from shoal_engine.errors import EngineError, QueueFull, RequestTimeout
from shoal_engine.messages import Output, Submit
from shoal_engine.server.answer_trace import CLIENT_CLOSED_REQUEST, AnswerTrace
from shoal_engine.server.connection import connection_of
from shoal_engine.server.events import Events
from shoal_engine.server.fault_replies import internal_error, reply_of, response_of
from shoal_engine.server.generation import ClientGone, Generation
from shoal_engine.server.replies import PING, encode, event
from shoal_engine.server.service import Service
from shoal_engine.server.shape import Choice, Meter, Shape

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """An admitted request: what the engine is to do, and how its outputs become an answer."""

    submits: Sequence[Submit]
    texts: Sequence[ChoiceText]
    shape: Shape
    meter: Meter
    events: Events | None  # of a stream; None: the answer is told in one piece

    @property
    def finished(self) -> bool:
        return all(text.finished for text in self.texts)


class Answer(Response):
    """The response of a generating route. `admit` does what may take long or fail: tokenise, check, refuse."""

    def __init__(
        self,
        service: Service,
        arrived_s: float,
        admit: Callable[[], Awaitable[Job]],
        timeout_s: float | None = None,
    ) -> None:
        """timeout_s: how long after its arrival the engine stops working for it; None: it never does."""
        super().__init__()
        self._generation = Generation(arrived_s, service.limits.held)
        self._timeout_s = timeout_s
        self._admit = admit
        self._service = service
        self._client = service.client
        self._committed = False
        self._status = 200
        self._meter: Meter | None = None
        self._written_s = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._service.answers.add(self)
        trace = self._begin_trace(scope)
        gone = asyncio.create_task(self._watch_client(receive))
        try:
            await self._answer(scope, receive, send)
        except ClientGone:
            self._status = CLIENT_CLOSED_REQUEST
            self._service.metrics.on_disconnect()
        except EngineError as error:
            await self._fail(error, scope, receive, send, gone)
        except Exception:
            log.exception("request failed", extra={"request_id": scope["state"]["request_id"]})
            await self._fail(internal_error(), scope, receive, send, gone)
        finally:
            gone.cancel()
            self._client.abort(self._generation)
            self._service.answers.discard(self)
            if trace is not None:
                trace.end(self._status, self._meter)

    def _begin_trace(self, scope: Scope) -> AnswerTrace | None:
        sender = self._service.sender
        if sender is None:
            return None
        trace = AnswerTrace(sender, scope, self._service.model, self._generation.arrived_s)
        self._generation.timeline = trace.timeline
        return trace

    def tick(self, now_s: float) -> None:
        """Called about once a second: wakes a stream that has something to say without news from the engine."""
        limits = self._service.limits
        if now_s - self._written_s >= (limits.ping_period_s if self._committed else limits.commit_timeout_s):
            self._generation.nudge()

    def fail(self, error: EngineError) -> None:
        self._generation.fail(error)

    async def _watch_client(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._generation.leave()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._in_time():
            job = await self._admit()
            self._meter = job.meter
            self._generation.check_client()
            if not job.finished:  # as is one whose missing events are not of its tokens
                self._client.submit(self._generation, job.submits)
            if job.events is not None:
                await self._stream(job, job.events, send)
            else:
                reply = await self._whole(job)
        if job.events is not None:
            await self._write(job.events, job.events.end(), send, more=False)
        else:
            await Response(reply, media_type="application/json")(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """What is inside ends with RequestTimeout when the request's time is over."""
        if self._timeout_s is None:
            yield
            return
        left_s = self._timeout_s - (time.monotonic() - self._generation.arrived_s)
        try:
            async with asyncio.timeout(max(left_s, 0.0)) as limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise RequestTimeout(
                f"The request had {self._timeout_s:.3f} s, which are over. Allow it more, or ask for fewer tokens."
            ) from None

    async def _whole(self, job: Job) -> bytes:
        choices = [Choice() for _ in job.submits]
        while not job.finished:
            for index, output in (await self._generation.take()).items():
                choices[index].add(self._advance(job, index, output))

        def render() -> bytes:
            return encode(job.shape.whole(choices, job.meter.usage()))

        # A hundred thousand log probabilities take a tenth of a second: others must not wait for that.
        large = self._generation.held > self._service.limits.inline_entries
        return await asyncio.to_thread(render) if large else render()

    async def _stream(self, job: Job, events: Events, send: Send) -> None:
        while not job.finished:
            news = await self._generation.take()
            self._generation.release()
            if not self._committed:
                self._generation.check_error()
            deltas = [
                (index, self._advance(job, index, output))
                for index, output in news.items()
                if not job.texts[index].finished
            ]
            data = (b"" if self._committed else events.opening()) + events.news(deltas)
            if data or not news:
                await self._write(events, data or PING, send)

    def _advance(self, job: Job, index: int, output: Output) -> Delta:
        text, meter = job.texts[index], job.meter
        before = text.num_tokens
        delta = text.advance(output)
        meter.on_output(index, output)
        meter.completion_tokens += text.num_tokens - before
        if text.stopped_by_text:
            self._client.abort(self._generation, [index])
        return delta

    async def _write(self, events: Events, data: bytes, send: Send, *, more: bool = True) -> None:
        if not self._committed:
            self._committed = True
            await send({"type": "http.response.start", "status": 200, "headers": events.headers()})
        self._written_s = time.monotonic()
        await send({"type": "http.response.body", "body": data, "more_body": more})

    async def _fail(
        self, error: EngineError, scope: Scope, receive: Receive, send: Send, gone: asyncio.Task[None]
    ) -> None:
        self._status = error.status
        started = bool(self._generation.submits) and not isinstance(error, QueueFull)
        self._client.abort(self._generation)
        if error.status == 500:
            facts = {"request_id": scope["state"]["request_id"], "code": error.code}
            log.warning("request ended with an error of ours", extra=facts)
        if not self._committed:
            if error.status in (429, 503):
                self._service.metrics.on_rejected(error.code)
            await response_of(error, started=started)(scope, receive, send)
            return
        await send({"type": "http.response.body", "body": event(reply_of(error)), "more_body": True})
        # Closing without the last chunk: no client, and no proxy, can take this for a complete answer.
        if connection := connection_of(scope):
            connection.close()
            with contextlib.suppress(asyncio.CancelledError):
                await gone
