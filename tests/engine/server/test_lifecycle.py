"""Loading, serving, draining, dying: what clients, probes and the parent see of each."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from shoal_api.exit_codes import ExitCode
from shoal_engine.errors import ModelLoadError
from shoal_engine.heartbeat import HangLimits
from shoal_engine.model_text import ModelText
from tests.engine.server.running import Running, serving, until
from tests.engine.server.scripted_engine import DIE, HANG, RAISE, Script


class Stream:
    """A streaming request that a thread reads to its end."""

    def __init__(self, server: Running, **body: Any) -> None:
        self.status = 0
        self.lines: list[str] = []
        self.broken = False
        self._body = {"prompt": [40], "stream": True, **body}
        self._thread = threading.Thread(target=self._read, args=(server.url,))
        self._thread.start()

    def _read(self, url: str) -> None:
        with httpx.stream("POST", url + "/v1/completions", json=self._body, timeout=30) as response:
            self.status = response.status_code
            try:
                self.lines.extend(line for line in response.iter_lines() if line)
            except httpx.RemoteProtocolError:
                self.broken = True

    def end(self) -> Stream:
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()
        return self

    @property
    def error(self) -> Any:
        return json.loads(self.lines[-1].removeprefix("data: ")).get("error")


# Loading


def test_the_port_is_open_at_once_and_ready_only_when_the_engine_is() -> None:
    with serving(Script(load_s=0.5), wait=False) as server:
        until(lambda: server.http.get("/ready").json()["done"] == 50)
        ready = server.http.get("/ready")
        assert ready.status_code == 503
        assert ready.json() == {"status": "loading", "phase": "weights", "done": 50, "total": 100}
        assert server.http.get("/health").status_code == 200
        for path in ("/v1/models", "/v1/completions", "/v1/chat/completions"):
            body = {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}
            early = server.http.get(path) if path.endswith("models") else server.http.post(path, json=body)
            assert (early.status_code, early.json()["error"]["code"]) == (503, "loading")
        until(lambda: server.http.get("/ready").status_code == 200)
        assert server.complete(max_tokens=2).status_code == 200


def test_a_signal_while_loading_ends_the_process_at_once_with_0() -> None:
    with serving(Script(load_s=60), wait=False) as server:
        until(lambda: server.http.get("/ready").json()["phase"] == "weights")
        started_s = time.monotonic()
        server.stop()
        assert server.exit_code() == ExitCode.STOPPED
        assert time.monotonic() - started_s < 20  # of the 60 that loading takes


def test_a_model_that_cannot_be_loaded_ends_the_process_with_its_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(Script(load_error="model.gguf: cut off; download it again"), wait=False) as server:
        assert server.exit_code() == ExitCode.MODEL
    assert "model.gguf: cut off; download it again" in caplog.messages


def test_a_tokenizer_that_cannot_be_loaded_ends_it_as_well(caplog: pytest.LogCaptureFixture) -> None:
    def load_text() -> ModelText:
        raise ModelLoadError("tokenizer.json is missing; copy it beside the weights")

    with serving(Script(load_s=60), wait=False, load_text=load_text) as server:
        assert server.exit_code() == ExitCode.MODEL
    assert "tokenizer.json is missing; copy it beside the weights" in caplog.messages


def test_loading_without_progress_is_unhealthy_and_then_the_end() -> None:
    with serving(Script(load_s=60), wait=False, load_progress_s=1.0) as server:
        assert server.exit_code() == ExitCode.STALLED


# Dying


@pytest.mark.parametrize(
    ("order", "code"), [(DIE, 128 + signal.SIGKILL), (RAISE, ExitCode.ENGINE_DIED)], ids=["killed", "raised"]
)
def test_a_dead_engine_fails_its_requests_with_a_typed_error_and_the_process_with_its_code(
    order: int, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(Script(step_s=0.005), keep_alive_s=1) as server, ThreadPoolExecutor() as pool:
        stream = Stream(server, max_tokens=2000)
        whole = pool.submit(server.complete, max_tokens=2000)
        until(lambda: len(stream.lines) > 3 and server.open_requests() == 2)
        killer = pool.submit(server.complete, (order,), max_tokens=5)
        assert server.exit_code() == code
        stream.end()
        assert stream.broken
        assert stream.error["code"] == "engine_unavailable"
        assert "[DONE]" not in stream.lines[-1]
        assert 'finish_reason":"' not in "".join(stream.lines)
        for answer in (whole.result(), killer.result()):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
            assert "x-shoal-not-started" not in answer.headers
    reason = "was killed by signal 9" if order == DIE else "RuntimeError: a bug in step()"
    assert any(reason in message for message in caplog.messages)


def test_an_engine_that_is_killed_from_outside_is_noticed_within_a_second() -> None:
    with serving(Script()) as server:
        assert server.api.client.pid is not None
        os.kill(server.api.client.pid, signal.SIGKILL)
        killed_s = time.monotonic()
        until(lambda: server.api.client.ended.done())
        assert time.monotonic() - killed_s < 3  # the rule is 1; the rest is for a busy test machine
        assert server.exit_code() == 128 + signal.SIGKILL


@pytest.mark.parametrize("how", ["step", "stopped"])
def test_a_hung_engine_is_unhealthy_while_the_rest_of_the_server_answers(how: str) -> None:
    hang = HangLimits(step_s=0.3, first_step_s=0.3)
    with serving(Script(), hang=hang, engine_exit_s=0.2) as server:
        assert server.http.get("/health").status_code == 200
        if how == "stopped":
            assert server.api.client.pid is not None
            os.kill(server.api.client.pid, signal.SIGSTOP)  # before it has read that there is work
        stream = Stream(server, prompt=[HANG])
        until(lambda: server.http.get("/health").status_code == 503)
        health = server.http.get("/health").json()
        assert health["status"] == "stalled"
        assert health["stalled_s"] > 0.3
        assert server.http.get("/ready").status_code == 503
        assert server.metric("shoal:stalled_seconds") > 0.3
        assert server.http.get("/v1/models").status_code == 200
        server.stop()
        server.stop()
        assert server.exit_code() == ExitCode.STOPPED  # even so: somebody asked
        stream.end()


def test_an_idle_engine_is_healthy_however_long_it_idles() -> None:
    hang = HangLimits(step_s=0.05, first_step_s=0.05)
    with serving(Script(), hang=hang) as server:
        server.complete(max_tokens=2)
        time.sleep(0.3)
        assert server.http.get("/health").json() == {"status": "ok", "phase": "serving", "stalled_s": 0.0}


# Draining


def test_draining_refuses_new_requests_and_lets_running_ones_end() -> None:
    with serving(Script(step_s=0.005)) as server:
        stream = Stream(server, max_tokens=100)
        until(lambda: len(stream.lines) > 3)
        server.stop()
        until(lambda: server.http.get("/ready").json()["status"] == "draining")
        assert server.http.get("/ready").status_code == 503
        assert server.http.get("/health").status_code == 200
        refused = server.complete()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["x-shoal-not-started"] == "true"
        assert stream.end().lines[-1] == "data: [DONE]"
        assert server.exit_code() == ExitCode.STOPPED


@pytest.mark.parametrize("how", ["time", "second signal"])
def test_requests_that_outlast_the_drain_get_an_error_in_their_stream(how: str) -> None:
    with serving(Script(step_s=0.005), drain_timeout_s=0.2 if how == "time" else 60) as server:
        stream = Stream(server, max_tokens=2000)
        until(lambda: len(stream.lines) > 3)
        server.stop()
        if how == "second signal":
            until(lambda: server.http.get("/ready").status_code == 503)
            server.stop()
        stream.end()
        assert stream.broken
        assert stream.error["code"] == "draining"
        assert server.exit_code() == ExitCode.STOPPED


def test_an_engine_that_dies_while_draining_is_no_clean_end() -> None:
    with serving(Script(step_s=0.005)) as server:
        stream = Stream(server, max_tokens=2000)
        until(lambda: len(stream.lines) > 3)
        server.stop()
        until(lambda: server.http.get("/ready").status_code == 503)
        assert server.api.client.pid is not None
        os.kill(server.api.client.pid, signal.SIGKILL)
        assert server.exit_code() == 128 + signal.SIGKILL
        stream.end()


def test_a_stream_that_waits_long_is_committed_and_then_pinged() -> None:
    # One seat, taken: the second request gets its status and comments long before its first token.
    with serving(Script(step_s=0.01, max_running=1), commit_timeout_s=0.5, ping_period_s=0.5) as server:
        first = Stream(server, max_tokens=1500)
        until(lambda: server.open_requests() == 1)
        second = Stream(server, max_tokens=3)
        until(lambda: second.lines.count(": ping") >= 2)
        assert second.status == 200
        first_lines = len(first.lines)
        server.stop()
        server.stop()
        first.end(), second.end()
        assert first_lines > 3


def test_nothing_that_clients_send_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="shoal_engine")
    secret = "canary-7f3a"
    with serving(Script(), api_keys=[secret]) as server:
        server.http.headers["authorization"] = f"Bearer {secret}"
        assert server.complete(f"tell me {secret}", max_tokens=5).status_code == 200
        assert server.complete(f"tell me {secret}", max_tokens=-1).status_code == 400
        assert server.complete([RAISE], max_tokens=5, user=secret).status_code == 503
        server.exit_code()
    assert caplog.messages
    assert secret not in caplog.text.replace("GET http", "")
