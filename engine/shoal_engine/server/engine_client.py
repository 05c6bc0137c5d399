"""The API process's line to the engine process: hands requests over, has outputs delivered, knows how the engine is.

Everything runs on the event loop and nothing here ever waits for a client. When the engine process ends, for whatever
reason, every open request learns of it at once and `ended` says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence

from shoal_engine.errors import EngineUnavailable, QueueFull
from shoal_engine.frames import FrameDecoder, frame
from shoal_engine.heartbeat import hangs, stalled_s
from shoal_engine.messages import Abort, Failed, FromEngine, Loading, Outputs, Ready, Stop, Submit
from shoal_engine.server.engine_child import EngineChild
from shoal_engine.server.engine_faults import cause_of_death
from shoal_engine.server.generation import Generation
from shoal_engine.server.held_tags import HeldTags
from shoal_engine.server.limits import Limits
from shoal_engine.server.open_requests import Listener, OpenRequests

log = logging.getLogger(__name__)


class EngineClient(asyncio.Protocol):
    """`start` once; then `submit` and `abort`. `loading`, `ready` and `ended` say how the engine is."""

    def __init__(self, command: Sequence[str], limits: Limits, listener: Listener) -> None:
        self.loading = Loading("starting")
        self.loading_at_s = time.monotonic()
        self.ready: Ready | None = None
        self.ended: asyncio.Future[Failed] = asyncio.get_running_loop().create_future()
        self.tags = HeldTags()
        self.changed = asyncio.Event()  # loading has progressed, or is over
        self._command = command
        self._limits = limits
        self._open = OpenRequests(listener)
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
        """Whether work waits for longer than a step can take.

        Read from shared memory: a hung engine need not answer for it.
        """
        if self._child is None or self.ready is None:
            return False
        beat = self._child.heartbeat.read()
        return hangs(beat, self._open.since_ns, time.monotonic_ns(), self._limits.hang)

    def stalled_s(self) -> float:
        """Seconds for which work has waited for a step."""
        if self._child is None or self.ready is None:
            return 0.0
        return stalled_s(self._child.heartbeat.read(), self._open.since_ns, time.monotonic_ns())

    def check_room(self, count: int) -> None:
        """Raise QueueFull if the engine would refuse `count` more requests; it need not be asked for that."""
        most = self.ready.max_requests if self.ready else 0
        if most and len(self._open) + count > most:
            raise QueueFull(
                f"The engine has {len(self._open)} requests and takes {most}. Try again later.",
                retry_after_s=self._open.retry_after_s,
            )

    def submit(self, generation: Generation, submits: Sequence[Submit]) -> None:
        """Hand a request's generations to the engine.

        Raises EngineUnavailable and QueueFull; the engine itself may refuse them later, as an output.
        """
        if self._transport is None or self.ready is None or self.ended.done() or self._transport.is_closing():
            # A closed transport is the first sign: it takes a moment until the end of the process is known.
            raise EngineUnavailable("The engine is not running. Try again, or another replica.")
        self.check_room(len(submits))
        self._open.add(generation, submits)
        self._transport.writelines([frame(submit) for submit in generation.submits])

    def abort(self, generation: Generation, choices: Sequence[int] | None = None) -> None:
        """Stop computing the given choices, or all; those that have ended already are no error."""
        submits = generation.submits
        chosen = submits if choices is None else [submits[choice] for choice in choices]
        ids = self._open.end((each.id for each in chosen), "abort" if choices is None else "stop")
        if ids:
            self._send(Abort(ids))

    async def stop(self) -> None:
        """End the engine process, politely at first."""
        self._stopping = True
        if self._child is None:
            return
        self._send(Stop())
        # An engine that still loads reads no messages: there is nothing to be polite about.
        await self._child.end_within(self._limits.engine_exit_s if self.ready else 0.0)
        if self._watch is not None:
            await self._watch
        self._child.heartbeat.close()
        self._child = None

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        try:
            messages = self._decoder.feed(data)
        except ValueError:
            log.exception("the engine process sent what cannot be understood")
            if self._child is not None:
                self._child.kill()
            return
        for message in messages:
            if isinstance(message, Outputs):
                if (
                    message.tags is not None
                ):  # before the answers: who has read the end of one finds them told
                    self.tags.apply(message.tags)
                self._open.deliver(message, now_s)
            else:
                self._on_state(message, now_s)

    def connection_lost(self, error: Exception | None) -> None:
        if self._child is not None and not self._stopping:
            self._end = asyncio.ensure_future(self._child.end_within(1.0))

    def _on_state(self, message: Loading | Ready | Failed, now_s: float) -> None:
        if isinstance(message, Failed):
            self._last_words = message
            return
        if isinstance(message, Ready):
            self.ready = message
        else:
            self.loading = message
        self.loading_at_s = now_s
        self.changed.set()

    def _send(self, message: Abort | Stop) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(message))

    async def _watch_child(self, child: EngineChild) -> None:
        returncode = await child.wait()
        # Its last words may still be in the socket: give the loop a turn to read them.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed(), 0.5)
        failed = self._last_words or cause_of_death(child.pid, returncode)
        self.ended.set_result(failed)
        self.changed.set()
        self._open.fail_all(EngineUnavailable("The engine process has ended. Try again, or another replica."))

    async def _closed(self) -> None:
        while self._transport is not None and not self._transport.is_closing():
            await asyncio.sleep(0.01)
