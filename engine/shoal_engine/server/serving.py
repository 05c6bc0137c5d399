"""The life of the API process: open the port, start the engine, serve, drain, end with a truthful exit code."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console

from shoal_api.exit_codes import ExitCode
from shoal_api.spans import SpanSender
from shoal_engine.errors import EngineUnavailable
from shoal_engine.messages import Failed
from shoal_engine.model_text import ModelText
from shoal_engine.server.app import build_app
from shoal_engine.server.engine_client import EngineClient
from shoal_engine.server.envelope import Keys
from shoal_engine.server.http_server import HttpServer, url_of
from shoal_engine.server.limits import Limits
from shoal_engine.server.loading_display import LoadingDisplay
from shoal_engine.server.metrics import Metrics
from shoal_engine.server.prompts import Prompts
from shoal_engine.server.service import Service
from shoal_engine.server.startup import started

if TYPE_CHECKING:
    from shoal_engine.server.state_server import StateServer

log = logging.getLogger(__name__)
FLUSH_S = 2.0  # what clients get to read their last event
TICK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one server process needs to know."""

    model_name: str
    model_root: str
    version: str
    engine_command: Sequence[str]
    load_text: Callable[[], ModelText]
    api_keys: Sequence[str] = ()
    seed: int | None = None  # of the seeds that are drawn for requests that bring none
    drain_timeout_s: float = 300.0
    grpc_port: int = 0  # where routers watch the engine's state; 0: nowhere
    any_grpc_port: bool = False  # whether another one will do when that is taken
    limits: Limits = field(default_factory=Limits)
    sender: SpanSender | None = None  # of traces, when there are to be any


class ApiServer:
    """One run: `run` returns the exit code. Not for use a second time. To be made on a running event loop."""

    def __init__(self, settings: Settings, listener: socket.socket, console: Console) -> None:
        name, limits = settings.model_name, settings.limits
        self.settings = settings
        self.metrics = Metrics()
        self.client = EngineClient(settings.engine_command, limits, self.metrics)
        self.service = Service(name, settings.model_root, self.client, self.metrics, limits, settings.version)
        self.service.sender = settings.sender
        if settings.seed is not None:
            self.service.seeds.seed(f"api {settings.seed}")  # other numbers than the engine's own
        app = build_app(self.service, Keys(settings.api_keys))
        self.http = HttpServer.of(app, limits, FLUSH_S)
        self._listener = listener
        self._state_server: StateServer | None = None
        self._display = LoadingDisplay(console)
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._started_s = time.monotonic()

    async def run(self) -> int:
        """Serve until a signal or the engine's end."""
        http = asyncio.create_task(self.http.serve(sockets=[self._listener]))
        tick = asyncio.create_task(self._tick())
        try:
            with self._signal_handlers():
                await self.client.start()  # it loads while this process imports gRPC
                if not await self._push_state():
                    return ExitCode.ADDRESS
                log.info("listening", extra={"url": url_of(self._listener)})
                return await self._live(http)
        finally:
            tick.cancel()
            self._display.close()
            self.http.end()
            await self.client.stop()
            if self._state_server is not None:
                await self._state_server.stop()
            await http
            if self.service.prompts is not None:
                self.service.prompts.close()

    async def _push_state(self) -> bool:
        """Listen for routers, if that is wanted; False if the port cannot be had."""
        host, port = self._listener.getsockname()[0], self.settings.grpc_port
        if not port:
            return True
        from shoal_engine.server.state_server import StateServer  # gRPC is imported by those who use it

        self._state_server = StateServer(self.service)
        try:
            self.metrics.grpc_port = await self._state_server.start(host, port)
        except OSError as error:
            if not self.settings.any_grpc_port:
                log.error("cannot listen for gRPC; choose another --grpc-port", extra={"why": str(error)})
                return False
            # Another engine, started at the same time, was quicker. Routers read in the metrics which port it is.
            self.metrics.grpc_port = await self._state_server.start(host, 0)
        return True

    def stop(self) -> None:
        """As a signal would: drain, or end at once if that is under way already."""
        self._signals.put_nowait(signal.SIGTERM)

    async def _live(self, http: asyncio.Task[None]) -> int:
        asked = asyncio.create_task(self._signals.get())
        load = asyncio.create_task(self._load())
        try:
            await _first(asked, self.client.ended, load, http)
            if load.done() and (failed := load.result()) is not None:
                return await self._die(failed)
            await _first(asked, self.client.ended, http)
            if self.client.ended.done():
                return await self._die(self.client.ended.result())
            if http.done():
                return await self._die(Failed("The HTTP server has ended by itself.", ExitCode.UNEXPECTED))
            if not load.done():
                log.info("stopped while loading")
                return ExitCode.STOPPED
            return await self._drain()
        finally:
            asked.cancel()
            load.cancel()

    async def _load(self) -> Failed | None:
        """Open the service once the model is there; why not, if it will not be."""
        limits = self.settings.limits
        text = await started(self.client, self.settings.load_text, self._display, limits.load_progress_s)
        if isinstance(text, Failed):
            return text
        ready = self.client.ready
        assert ready is not None
        self.metrics.on_ready(ready)
        self.service.defaults = text.defaults
        self.service.prompts = Prompts(text.tokenizer, text.template, limits, text.longest_token_bytes)
        gc.collect()
        gc.freeze()  # what loading has left stays: no collection need look at it again
        facts = {"model": self.settings.model_name, "device": ready.device, "dtype": ready.dtype}
        sizes = {"max_model_len": ready.max_model_len, "kv_blocks": ready.num_blocks}
        log.info("ready", extra=facts | sizes | {"seconds": round(time.monotonic() - self._started_s, 2)})
        return None

    async def _drain(self) -> int:
        """Refuse new requests, let the running ones end; a second signal or the time limit ends them."""
        self.service.draining = True
        limit_s = self.settings.drain_timeout_s
        log.info("draining", extra={"requests": len(self.service.answers), "at_most_s": limit_s})
        again = asyncio.create_task(self._signals.get())
        deadline_s = time.monotonic() + limit_s
        try:
            while self.service.answers and not again.done() and time.monotonic() < deadline_s:
                if self.client.ended.done():
                    return await self._die(self.client.ended.result())
                await _first(again, self.client.ended, timeout_s=0.05)
        finally:
            again.cancel()
        if self.service.answers:
            log.warning("requests cut off", extra={"requests": len(self.service.answers)})
            self.service.fail_all(
                EngineUnavailable("This replica has shut down. Try another one.", code="draining")
            )
            await self._flush()
        log.info("stopped")
        return ExitCode.STOPPED

    async def _die(self, failed: Failed) -> int:
        self._display.close()
        log.error(failed.message, extra={"exit_code": int(failed.exit_code)})
        await self._flush()
        return failed.exit_code

    async def _flush(self) -> None:
        """Let the last events of open answers leave."""
        deadline_s = time.monotonic() + FLUSH_S
        while self.service.answers and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            self.service.tick(now_s)
            if dropped := self.http.sweep(now_s):
                log.warning(
                    "clients were dropped: they did not read their answers", extra={"clients": dropped}
                )

    @contextlib.contextmanager
    def _signal_handlers(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


async def _first(*futures: asyncio.Future[Any], timeout_s: float | None = None) -> None:
    await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
