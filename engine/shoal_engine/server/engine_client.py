"""The API process's line to the engine process: hands requests over, spreads outputs to those who wait for
them.

Everything runs on the event loop and nothing here ever waits for a client. When the engine process ends, for
whatever reason, every open request learns of it at once and `ended` says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from shoal_engine.errors import EngineError, EngineUnavailable, QueueFull
from shoal_engine.frames import FrameDecoder, frame
from shoal_engine.heartbeat import hangs, stalled_s
from shoal_engine.messages import Abort, Failed, FromEngine, Loading, Output, Outputs, Ready, Stop, Submit
from shoal_engine.server.engine_child import EngineChild
from shoal_engine.server.engine_faults import cause_of_death, error_of
from shoal_engine.server.generation import Generation
from shoal_engine.server.limits import Limits
from shoal_engine.server.pace import Pace

log = logging.getLogger(__name__)


class Open(msgspec.Struct):
    """One request that is with the engine."""

    generation: Generation
    choice: int
    prompt_tokens: int
    max_tokens: int
    submitted_s: float
    started_s: float = 0.0  # when its first step began, 0: not known
    first_token_s: float = 0.0  # 0: none yet
    last_token_s: float = 0.0
    tokens: int = 0


class Listener(Protocol):
    """Who is told of every step; metrics.py."""

    def on_outputs(self, outputs: Outputs, now_s: float) -> None: ...

    def on_tokens(self, request: Open, count: int, now_s: float) -> None:
        """`count` more tokens of `request`, whose own fields still say how it was before them."""

    def on_finish(self, request: Open, reason: str, now_s: float) -> None: ...


class EngineClient(asyncio.Protocol):
    """`start` once; then `submit` and `abort`. `loading`, `ready` and `failed` say how the engine is."""

    def __init__(self, command: Sequence[str], limits: Limits, listener: Listener) -> None:
        self.loading = Loading("starting")
        self.loading_at_s = time.monotonic()
        self.ready: Ready | None = None
        self.ended: asyncio.Future[Failed] = asyncio.get_running_loop().create_future()
        self.changed = asyncio.Event()  # loading has progressed, or is over
        self._command = command
        self._limits = limits
        self._listener = listener
        self._open: dict[str, Open] = {}
        self._serials = itertools.count()
        self._open_since_ns: int | None = None
        self._pace = Pace()
        self._decoder = FrameDecoder[FromEngine](FromEngine)
        self._last_words: Failed | None = None
        self._stopping = False
        self._child: EngineChild | None = None
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.Task[None] | None = None
        self._end: asyncio.Task[int] | None = None

    async def start(self) -> None:
        """Start the engine process and listen to it; returns while it loads."""
        self._child = EngineChild.start(self._command)
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_connection(lambda: self, sock=self._child.socket)
        self._watch = asyncio.create_task(self._watch_child(self._child))

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    @property
    def open_requests(self) -> int:
        return len(self._open)

    def hangs(self) -> bool:
        """Whether work waits for longer than a step can take. Read from shared memory: a hung engine cannot
        lie.
        """
        if self._child is None or self.ready is None:
            return False
        beat = self._child.heartbeat.read()
        return hangs(beat, self._open_since_ns, time.monotonic_ns(), self._limits.hang)

    def stalled_s(self) -> float:
        if self._child is None or self.ready is None:
            return 0.0
        return stalled_s(self._child.heartbeat.read(), self._open_since_ns, time.monotonic_ns())

    def check_room(self, count: int) -> None:
        """Raise QueueFull if the engine would refuse `count` more requests; it need not be asked for that."""
        most = self.ready.max_requests if self.ready else 0
        if most and len(self._open) + count > most:
            raise QueueFull(
                f"The engine has {len(self._open)} requests and takes {most}. Try again later.",
                retry_after_s=self._pace.retry_after_s(len(self._open)),
            )

    def submit(self, generation: Generation, submits: Sequence[Submit]) -> None:
        """Hand a request's generations to the engine, under ids of our own.

        Raises EngineUnavailable and QueueFull; the engine itself may refuse them later, as an output.
        """
        if self._transport is None or self.ready is None or self.ended.done():
            raise EngineUnavailable("The engine is not running. Try again, or another replica.")
        self.check_room(len(submits))
        generation.submits = [msgspec.structs.replace(each, id=str(next(self._serials))) for each in submits]
        if not self._open:
            self._open_since_ns = time.monotonic_ns()
        for choice, submit in enumerate(generation.submits):
            self._open[submit.id] = Open(
                generation,
                choice,
                len(submit.prompt_token_ids),
                submit.params.max_tokens or 0,
                time.monotonic(),
            )
        self._transport.writelines([frame(submit) for submit in generation.submits])

    def abort(self, generation: Generation, choices: Sequence[int] | None = None) -> None:
        """Stop computing the given choices, or all; those that have ended already are no error."""
        submits = (
            generation.submits if choices is None else [generation.submits[choice] for choice in choices]
        )
        ids = [submit.id for submit in submits if submit.id in self._open]
        if not ids:
            return
        now_s = time.monotonic()
        for request_id in ids:
            self._close(request_id, "abort" if choices is None else "stop", now_s)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(Abort(ids)))

    def fail_all(self, error: EngineError) -> None:
        """End every open request with `error` and stop computing them."""
        for generation in {id(each.generation): each.generation for each in self._open.values()}.values():
            generation.fail(error)
            self.abort(generation)

    async def stop(self) -> None:
        """End the engine process, politely at first."""
        self._stopping = True
        if self._child is None:
            return
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(Stop()))
        # An engine that still loads reads no messages: there is nothing to be polite about.
        await self._child.end_within(self._limits.engine_exit_s if self.ready else 0.0)
        if self._watch is not None:
            await self._watch
        self._child.heartbeat.close()
        self._child = None

    # From the socket

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        try:
            for message in self._decoder.feed(data):
                self._on_message(message, now_s)
        except Exception:
            log.exception("the engine process sent what cannot be understood")
            if self._child is not None:
                self._child.kill()

    def connection_lost(self, error: Exception | None) -> None:
        if self._child is not None and not self._stopping:
            self._end = asyncio.ensure_future(self._child.end_within(1.0))

    def _on_message(self, message: FromEngine, now_s: float) -> None:
        if isinstance(message, Outputs):
            self._listener.on_outputs(message, now_s)
            for output in message.outputs:
                self._on_output(output, now_s)
        elif isinstance(message, Failed):
            self._last_words = message
        else:
            if isinstance(message, Ready):
                self.ready = message
            else:
                self.loading = message
            self.loading_at_s = now_s
            self.changed.set()

    def _on_output(self, output: Output, now_s: float) -> None:
        request = self._open.get(output.id)
        if request is None:
            return  # aborted while this was under way
        if output.token_ids:
            self._listener.on_tokens(request, len(output.token_ids), now_s)
            if output.queued_s is not None:
                request.started_s = request.submitted_s + output.queued_s
            request.first_token_s = request.first_token_s or now_s
            request.last_token_s = now_s
            request.tokens += len(output.token_ids)
        if output.finish_reason in ("error", "abort"):
            request.generation.fail(error_of(output))
        else:
            request.generation.push(request.choice, output)
        if output.finish_reason is not None:
            self._close(output.id, output.finish_reason, now_s)

    def _close(self, request_id: str, reason: str, now_s: float) -> None:
        self._listener.on_finish(self._open.pop(request_id), reason, now_s)
        self._pace.on_finish(now_s)
        if not self._open:
            self._open_since_ns = None

    # The end

    async def _watch_child(self, child: EngineChild) -> None:
        returncode = await child.wait()
        # Its last words may still be in the socket: give the loop a turn to read them.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed(), 0.5)
        failed = self._last_words or cause_of_death(child.pid, returncode)
        self.ended.set_result(failed)
        self.changed.set()
        self.fail_all(EngineUnavailable("The engine process has ended. Try again, or another replica."))

    async def _closed(self) -> None:
        while self._transport is not None and not self._transport.is_closing():
            await asyncio.sleep(0.01)
