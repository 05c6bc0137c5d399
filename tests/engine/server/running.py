"""A real API server with a scripted engine process behind it, on a port of its own, in a thread of the test."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import uvloop
from rich.console import Console

from shoal_api.options import ModelOptions
from shoal_engine.model_text import ModelText, load_model_text
from shoal_engine.server.http_server import listen, url_of
from shoal_engine.server.limits import Limits
from shoal_engine.server.serving import ApiServer, Settings
from tests.builders import smollm2
from tests.engine.server.scripted_engine import Script, command

MODEL = "scripted"


@functools.cache
def model_text() -> ModelText:
    """SmolLM2's tokenizer and template; the engine behind them is scripted. No recommended sampling."""
    text = load_model_text(ModelOptions(model=str(smollm2())))
    return ModelText(text.tokenizer, text.template, text.longest_token_bytes, {})


@dataclass(slots=True)
class Running:
    """What a test does with a server."""

    url: str
    http: httpx.Client
    api: ApiServer
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    codes: list[int]

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def complete(self, prompt: Any = (40, 41, 42), **body: Any) -> httpx.Response:
        return self.post(
            "/v1/completions", prompt=list(prompt) if isinstance(prompt, tuple) else prompt, **body
        )

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample; 0 if there is none."""
        for line in self.http.get("/metrics").text.splitlines():
            wanted = [f'{key}="{value}"' for key, value in labels.items()]
            if line.startswith((name + "{", name + " ")) and all(each in line for each in wanted):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def open_requests(self) -> int:
        return self.api.client.open_requests

    def stop(self) -> None:
        """As SIGTERM does."""
        self.loop.call_soon_threadsafe(self.api.stop)

    def exit_code(self) -> int:
        """Wait for the end."""
        self.thread.join(timeout=30)
        return self.codes[0]


def settings_for(script: Script, changes: dict[str, Any]) -> Settings:
    """Settings of a server in front of a scripted engine; `changes` are fields of Settings or of Limits."""
    of_limits = {key: value for key, value in changes.items() if key in Limits.__dataclass_fields__}
    others = {key: value for key, value in changes.items() if key not in of_limits}
    plain = {
        "model_name": MODEL,
        "model_root": "/models/scripted",
        "version": "1.2.3",
        "engine_command": command(script),
        "load_text": model_text,
        "limits": Limits(**of_limits),
    }
    return Settings(**(plain | others))


@contextlib.contextmanager
def serving(script: Script | None = None, *, wait: bool = True, **changes: Any) -> Iterator[Running]:
    """`changes`: fields of Settings or of Limits. With `wait`, ready before the test begins."""
    settings = settings_for(script or Script(), changes)
    listener = listen("127.0.0.1", 0)
    url = url_of(listener)
    started: list[Any] = []
    codes: list[int] = []

    async def live() -> None:
        api = ApiServer(settings, listener, Console(file=io.StringIO()))
        started.extend((api, asyncio.get_running_loop()))
        codes.append(await api.run())

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(live())

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: len(started) == 2)
    with httpx.Client(base_url=url, timeout=30) as http:
        server = Running(url, http, started[0], started[1], thread, codes)
        try:
            if wait:
                until(lambda: http.get("/ready").status_code == 200)
            yield server
        finally:
            if thread.is_alive():
                for _ in range(2):  # a second one does not wait for requests a test has left behind
                    with contextlib.suppress(RuntimeError):
                        server.stop()
            thread.join(timeout=30)


def until(condition: Any, timeout_s: float = 60.0) -> None:
    """Wait for something that comes soon; how soon is not the test's business."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


def events(response: httpx.Response) -> list[Any]:
    """The data of a stream's events; "[DONE]" as itself."""
    data = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [each if each == "[DONE]" else msgspec.json.decode(each) for each in data]
