"""`shoal router` as a process: options, signals, exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import shoal_api
import shoal_router
from shoal_api.exit_codes import ExitCode
from shoal_api.options import RouterOptions
from shoal_router.settings import RouterSettings
from tests.collector import Collector, collecting
from tests.router.scripted import (
    LAST_CHUNK,
    PING,
    Client,
    Received,
    Replica,
    chat,
    chunk,
    get,
    post,
    stream_until,
)

# The packages that these tests themselves run: the sources, or those that `make compiled` made.
PACKAGES = os.pathsep.join(str(Path(each.__path__[0]).parent) for each in (shoal_router, shoal_api))
ENVIRONMENT = {"PYTHONPATH": PACKAGES, "PATH": "/usr/bin:/bin"}


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "shoal_router", *flags]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.fixture
def environment() -> dict[str, str]:
    return dict(ENVIRONMENT)


async def wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(20):
        while True:
            assert process.poll() is None, "it ended before it was ready"
            try:
                client = await Client.connect(port)
                answer = await client.ask(get("/ready"))
                client.close()
                if answer.status == 200:
                    return
            except (OSError, asyncio.IncompleteReadError):
                pass
            await asyncio.sleep(0.02)


def test_sigterm_finishes_what_runs_and_exits_with_zero(environment: dict[str, str]) -> None:
    async def scenario() -> None:
        release = asyncio.Event()

        replica, port = Replica(script=stream_until(release)), free_port()
        await replica.start()
        flags = ("--endpoint", replica.url, "--port", str(port), "--health-interval-s", "0.05")
        process = subprocess.Popen(command(*flags), env=environment, stderr=subprocess.PIPE)
        try:
            await wait_until_ready(port, process)
            client = await Client.connect(port)
            client.writer.write(post(body=chat("hi", stream=True)))
            await client.head()
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.2)
            assert process.poll() is None
            release.set()
            assert await client.rest() == PING + chunk(b"data: [DONE]\n\n") + LAST_CHUNK
            client.close()
            assert await asyncio.to_thread(process.wait, 10) == 0
        finally:
            process.kill()
            process.communicate()
            await replica.kill()

    asyncio.run(scenario())


def test_router_goes_on_for_its_delay_after_sigterm(environment: dict[str, str]) -> None:
    async def scenario() -> None:
        replica, port = Replica(), free_port()
        await replica.start()
        flags = ("--endpoint", replica.url, "--port", str(port), "--drain-delay-s", "1")
        process = subprocess.Popen(command(*flags), env=environment, stderr=subprocess.PIPE)
        try:
            await wait_until_ready(port, process)
            kept = await Client.connect(port)
            assert "connection" not in (await kept.ask(post())).headers
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            for client in (kept, await Client.connect(port)):
                answer = await client.ask(post())
                assert (answer.status, answer.headers["connection"]) == (200, "close")
                client.close()
            assert await asyncio.to_thread(process.wait, 10) == 0
        finally:
            process.kill()
            process.communicate()
            await replica.kill()

    asyncio.run(scenario())


def test_second_signal_ends_the_drain(environment: dict[str, str]) -> None:
    async def scenario() -> None:
        async def forever(request: Received, writer: asyncio.StreamWriter) -> None:
            await asyncio.Event().wait()

        replica, port = Replica(script=forever), free_port()
        await replica.start()
        flags = ("--endpoint", replica.url, "--port", str(port), "--health-interval-s", "0.05")
        process = subprocess.Popen(command(*flags), env=environment, stderr=subprocess.PIPE)
        try:
            await wait_until_ready(port, process)
            client = await Client.connect(port)
            client.writer.write(post())
            while not replica.requests:
                await asyncio.sleep(0.01)
            for _ in range(2):
                process.send_signal(signal.SIGINT)
                await asyncio.sleep(0.2)
            assert await asyncio.to_thread(process.wait, 10) == 0
            client.close()
        finally:
            process.kill()
            process.communicate()
            await replica.kill()

    asyncio.run(scenario())


def test_sigusr1_turns_the_access_log_on_and_off(environment: dict[str, str]) -> None:
    async def scenario() -> None:
        replica, port = Replica(), free_port()
        await replica.start()
        flags = ("--endpoint", replica.url, "--port", str(port), "--health-interval-s", "0.05")
        process = subprocess.Popen(
            command(*flags), env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        try:
            await wait_until_ready(port, process)
            client = await Client.connect(port)
            process.send_signal(signal.SIGUSR1)
            line = asyncio.ensure_future(asyncio.to_thread(process.stdout.readline))
            while not line.done():  # the signal has no answer: ask until a request is seen
                await client.ask(get("/version", "X-Request-Id: on\r\n"))
                await asyncio.sleep(0.02)
            assert json.loads(line.result())["request_id"] == "on"
            process.send_signal(signal.SIGUSR1)
            client.close()
            process.terminate()
            rest, _ = await asyncio.to_thread(process.communicate, timeout=20)
            assert all(json.loads(each)["request_id"] == "on" for each in rest.splitlines())
            assert process.returncode == 0
        finally:
            process.kill()
            await replica.kill()

    asyncio.run(scenario())


def test_traces_named_by_the_environment_are_sent_at_the_latest_when_it_ends(
    environment: dict[str, str],
) -> None:
    async def scenario(collector: Collector) -> None:
        replica, port = Replica(), free_port()
        await replica.start()
        flags = ("--endpoint", replica.url, "--port", str(port), "--health-interval-s", "0.05")
        traced = environment | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "60000",
        }
        process = subprocess.Popen(command(*flags), env=traced, stderr=subprocess.PIPE)
        try:
            await wait_until_ready(port, process)
            client = await Client.connect(port)
            assert (await client.ask(post())).status == 200
            client.close()
            process.terminate()
            assert await asyncio.to_thread(process.wait, 20) == 0
        finally:
            process.kill()
            await replica.kill()

    with collecting() as collector:
        asyncio.run(scenario(collector))
    assert {span.name for span in collector.spans} == {"POST /v1/chat/completions", "attempt"}
    assert {span.service for span in collector.spans} == {"shoal-router"}


def test_taken_port_is_told_with_its_exit_code(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = ("--endpoint", "http://127.0.0.1:1", "--port", str(port))
        done = subprocess.run(command(*flags), env=environment, capture_output=True, timeout=20, check=False)
    assert done.returncode == ExitCode.ADDRESS
    assert b"choose another --port" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("flags", [(), ("--endpoint", "ftp://x"), ("--endpoint", "http://x:99999")])
def test_unusable_endpoints_are_refused_with_a_usage_error(
    flags: tuple[str, ...], environment: dict[str, str]
) -> None:
    done = subprocess.run(command(*flags), env=environment, capture_output=True, timeout=20, check=False)
    assert done.returncode == ExitCode.USAGE
    assert b"endpoint" in done.stderr
    assert b"Traceback" not in done.stderr


def test_settings_follow_the_options() -> None:
    options = RouterOptions.model_validate(
        {
            "endpoint": ("http://a:1", "http://b:2"),
            "api_key": ("k",),
            "engine_api_key": "e",
            "max_body_bytes": 4096,
            "retry_budget_percent": 50,
            "strategy": "LeastLoad",
            "prefix_hash": {"prefix_chars": 1024, "mean_load_percent": 150, "recompute_weight": 3.0},
        }
    )
    settings = RouterSettings.from_options(options)
    assert [(a.name, a.host, a.port) for a in settings.addresses] == [
        ("http://a:1", "a", 1),
        ("http://b:2", "b", 2),
    ]
    assert settings.connection.http.body_bytes == 4096
    assert settings.proxy.retries.budget == 0.5
    assert not settings.routing.prefer_cached
    assert settings.routing.home_block == 3
    assert (settings.routing.weights.mean_load, settings.routing.weights.recompute) == (1.5, 3.0)
    assert (settings.health.api_key, settings.engine_api_key) == ("e", "e")
