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
from typing import Any

import uvicorn
from rich.console import Console

from shoal_api.exit_codes import ExitCode
from shoal_engine.errors import EngineUnavailable, ModelLoadError
from shoal_engine.messages import Failed
from shoal_engine.server.app import build_app
from shoal_engine.server.connection import Connection, connection_type
from shoal_engine.server.engine_client import EngineClient
from shoal_engine.server.envelope import Keys
from shoal_engine.server.limits import Limits
from shoal_engine.server.loading_display import LoadingDisplay
from shoal_engine.server.metrics import Metrics
from shoal_engine.server.model_text import ModelText
from shoal_engine.server.prompts import Prompts
from shoal_engine.server.service import Service

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
    drain_timeout_s: float = 300.0
    limits: Limits = field(default_factory=Limits)


class _Http(uvicorn.Server):
    """uvicorn without its own signal handlers: what a signal means is decided below."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ApiServer:
    """One run: `run` returns the exit code. Not for use a second time."""

    def __init__(self, settings: Settings, listener: socket.socket, console: Console) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.model_name)
        self.client = EngineClient(settings.engine_command, settings.limits, self.metrics)
        self.service = Service(
            settings.model_name,
            settings.model_root,
            self.client,
            self.metrics,
            settings.limits,
            settings.version,
        )
        self._listener = listener
        self._display = LoadingDisplay(console)
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._http = self._make_http()
        self._started_s = time.monotonic()

    async def run(self) -> int:
        """Serve until a signal or the engine's end."""
        http = asyncio.create_task(self._http.serve(sockets=[self._listener]))
        tick = asyncio.create_task(self._tick())
        try:
            with self._signal_handlers():
                await self.client.start()
                host, port, *_ = self._listener.getsockname()
                log.info("listening", extra={"url": f"http://{f'[{host}]' if ':' in host else host}:{port}"})
                return await self._live()
        finally:
            tick.cancel()
            self._display.close()
            self._http.should_exit = True
            self._http.force_exit = True
            await self.client.stop()
            await http
            if self.service.prompts is not None:
                self.service.prompts.close()

    def stop(self) -> None:
        """As a signal would: drain, or end at once if that is under way already."""
        self._signals.put_nowait(signal.SIGTERM)

    async def _live(self) -> int:
        asked = asyncio.create_task(self._signals.get())
        load = asyncio.create_task(self._load())
        try:
            await _first(asked, self.client.ended, load)
            if load.done() and (failed := load.result()) is not None:
                return await self._die(failed)
            await _first(asked, self.client.ended)
            if self.client.ended.done():
                return await self._die(self.client.ended.result())
            if not load.done():
                log.info("stopped while loading")
                return ExitCode.STOPPED
            return await self._drain()
        finally:
            asked.cancel()
            load.cancel()

    async def _load(self) -> Failed | None:
        """Wait until both halves of the model are there; what went wrong, if something did."""
        text = asyncio.create_task(_in_daemon_thread(self.settings.load_text))
        try:
            while self.client.ready is None and not self.client.ended.done():
                self._display.show(self.client.loading)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.client.changed.wait(), TICK_S)
                self.client.changed.clear()
                if text.done() and (failed := _failure(text)) is not None:
                    return failed
                if time.monotonic() - self.client.loading_at_s > self.settings.limits.load_progress_s:
                    return Failed(
                        f"Loading stopped in phase {self.client.loading.phase!r} and made no progress for "
                        f"{self.settings.limits.load_progress_s:.0f} s.",
                        ExitCode.STALLED,
                    )
            if self.client.ended.done():
                return self.client.ended.result()
            await asyncio.wait({text})
            if (failed := _failure(text)) is not None:
                return failed
        finally:
            text.cancel()
            self._display.close()
        self._open(text.result())
        return None

    def _open(self, text: ModelText) -> None:
        """From here on requests are served."""
        ready = self.client.ready
        assert ready is not None
        self.metrics.on_ready(ready)
        self.service.defaults = text.defaults
        self.service.prompts = Prompts(
            text.tokenizer, text.template, self.settings.limits, text.longest_token_bytes
        )
        gc.collect()
        gc.freeze()  # what loading has left stays: no collection need look at it again
        facts: dict[str, object] = {
            "model": self.settings.model_name,
            "device": ready.device,
            "dtype": ready.dtype,
        }
        facts |= {"max_model_len": ready.max_model_len, "kv_blocks": ready.num_blocks}
        log.info("ready", extra=facts | {"seconds": round(time.monotonic() - self._started_s, 2)})

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
            await self._cut_off()
        log.info("stopped")
        return ExitCode.STOPPED

    async def _cut_off(self) -> None:
        self.service.fail_all(
            EngineUnavailable("This replica has shut down. Try another one.", code="draining")
        )
        await self._flush()

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
            for connection in list(self._http.server_state.connections):
                if isinstance(connection, Connection) and connection.sweep(now_s):
                    log.warning("a client was dropped: it did not read its answer")

    def _make_http(self) -> _Http:
        limits = self.settings.limits
        config = uvicorn.Config(
            build_app(self.service, Keys(self.settings.api_keys)),
            http=connection_type(limits),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=int(limits.keep_alive_s),
            timeout_graceful_shutdown=int(FLUSH_S),
            interface="asgi3",
        )
        return _Http(config)

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


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port that is taken is found before anything is loaded. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    listener.set_inheritable(False)
    return listener


async def _in_daemon_thread(work: Callable[[], ModelText]) -> ModelText:
    """In a thread that does not keep the process alive: a signal during loading ends it at once."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[ModelText] = loop.create_future()

    def tell(result: ModelText | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        elif result is not None:
            done.set_result(result)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as failure:
            error = failure
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name="load-text", daemon=True).start()
    return await done


def _failure(text: asyncio.Task[ModelText]) -> Failed | None:
    error = text.exception()
    if error is None:
        return None
    if isinstance(error, ModelLoadError):
        return Failed(error.message, ExitCode.MODEL)
    log.error("the tokenizer could not be loaded", exc_info=error)
    return Failed(f"The tokenizer could not be loaded: {type(error).__name__}: {error}", ExitCode.UNEXPECTED)
