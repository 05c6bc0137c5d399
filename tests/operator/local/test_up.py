"""`shoal up` as a person meets it: a real process with a fake engine and router, signals, output, exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.operator.local.liveness import alive, wait_gone
from tests.operator.local.programs.fleet import WAIT_S, Up, manifest, stream


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path)
    yield up
    if up.process is not None:
        up.process.kill()
        up.end()
        assert up.process.stdout is not None
        up.process.stdout.close()
    wait_gone(up.pids())


def test_replicas_load_serve_behind_one_port_and_drain_on_sigterm(up: Up) -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}}
    engine = {"maxModelLen": 99, "numThreads": 1}
    up.start([{"load_s": 0.4}], service, manifest(replicas=2, engine=engine), manifest("idle", suspend=True))
    facts = up.wait_ready()
    assert facts["url"] == up.url
    assert [replica["name"] for replica in facts["replicas"]] == ["fake-0", "fake-1"]
    # Two processes that start at once note their pids in either order.
    assert sorted(replica["pid"] for replica in facts["replicas"]) == sorted(up.pids())
    reply = httpx.post(f"{up.url}/v1/chat/completions", json={}, trust_env=False)
    assert reply.headers["x-shoal-replica"] == facts["replicas"][0]["url"]
    assert reply.json()["pid"] == facts["replicas"][0]["pid"]

    banner = re.search(r"^ready in \d+ s\n  url     (.*)\n  models  (.*)\n  try     (.*)\n", up.output, re.M)
    assert banner is not None
    assert (banner[1], banner[2]) == (f"{up.url}/v1", "fake")
    pasted = subprocess.run(
        f"{banner[3]} --silent --noproxy '*'", shell=True, capture_output=True, timeout=WAIT_S
    )
    assert json.loads(pasted.stdout)["pid"] in up.pids()

    up.signal(signal.SIGTERM)
    assert up.end() == 0
    assert "note: m.yaml:1: Service: `shoal up` runs LLMDeployments only" in up.output
    assert "note: idle: it is suspended" in up.output
    assert "fake-0  loading weights, " in up.output
    arguments = json.loads(re.findall(r"^fake-1  arguments (.*)$", up.output, re.M)[0])
    assert "--max-model-len=99" in arguments
    assert up.output.endswith("stopped\n")


def test_an_open_stream_ends_before_the_fleet_stops(up: Up) -> None:
    up.start([{}], manifest())
    up.wait_ready()
    with stream(up) as lines:
        assert next(lines) == "data: 0"
        up.signal(signal.SIGINT)
        up.wait(lambda: "draining" in up.output)
        up.wait(lambda: not listens(up.port))
        assert all(map(alive, up.pids()))
        assert "data: [DONE]" in list(lines)
    assert up.end() == 0
    wait_gone(up.pids())


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True


def test_the_second_interrupt_kills_at_once(up: Up) -> None:
    up.start([{"child": True}], manifest())
    up.wait_ready()
    with stream(up) as lines:
        assert next(lines) == "data: 0"
        up.signal(signal.SIGINT)
        up.wait(lambda: "draining" in up.output)
        up.signal(signal.SIGINT)
        started_s = time.monotonic()
        assert up.end() == 128 + signal.SIGINT
        assert time.monotonic() - started_s < 1.0  # the stream alone would take 2 s
        assert "data: [DONE]" not in list(lines)
    wait_gone(up.pids())


def test_what_outlasts_the_drain_timeout_is_killed_and_named(up: Up) -> None:
    up.start([{"deaf": True}], manifest(drain={"timeoutSeconds": 0}))
    up.wait_ready()
    up.signal(signal.SIGTERM)
    assert up.end() == 1
    assert "killed after the drain timeout: fake-0" in up.output


def test_nothing_outlives_a_killed_shoal_up(up: Up) -> None:
    up.start([{"deaf": True, "child": True}], manifest(replicas=2))
    facts = up.wait_ready()
    up.signal(signal.SIGKILL)
    assert up.end() == -signal.SIGKILL
    assert len(up.pids()) == 4
    wait_gone([*up.pids(), facts["router"]["pid"]])


def test_a_crashed_replica_is_restarted_and_its_death_explained(up: Up) -> None:
    up.start([{}], manifest())
    first = up.wait_ready()["replicas"][0]["pid"]
    os.kill(first, signal.SIGKILL)
    up.wait(lambda: len(up.pids()) == 2)
    up.wait(lambda: "fake-0  ready" in up.output.partition("was killed by SIGKILL")[2])
    assert httpx.post(f"{up.url}/v1/completions", json={}, trust_env=False).json()["pid"] == up.pids()[1]
    assert "fake-0  was killed by SIGKILL (often the kernel, out of memory" in up.output
    up.signal(signal.SIGTERM)
    assert up.end() == 0


@pytest.mark.parametrize(
    ("life", "starts", "says"),
    [
        (
            {"exit": 3, "stderr": "broken.gguf: no tensors"},
            1,
            "exited with code 3 (the model cannot be served); given up",
        ),
        ({"exit": 1, "stderr": "broken.gguf: no tensors"}, 3, "given up after 3 starts, stopping everything"),
    ],
)
def test_one_that_cannot_start_stops_everything_with_its_last_words(
    life: dict[str, Any], starts: int, says: str, up: Up
) -> None:
    up.start([life], manifest())
    assert up.end() == 1
    assert says in up.output
    assert "fake-0    | broken.gguf: no tensors" in up.output
    assert len(up.pids()) == starts
    assert "ready in" not in up.output


def test_interrupt_while_loading_stops_at_once(up: Up) -> None:
    up.start([{"load_s": None}], manifest())
    up.wait(lambda: "loading weights" in up.output)
    up.signal(signal.SIGHUP)
    assert up.end() == 0


def test_a_reader_that_leaves_ends_the_output_not_the_service(up: Up) -> None:
    (up.folder / "script.json").write_text("[{}]")
    (up.folder / "m.yaml").write_text(yaml.safe_dump(manifest()))
    up.run("-f", "m.yaml", stdout="closed")
    up.wait_ready()
    assert httpx.post(f"{up.url}/v1/completions", json={}, trust_env=False).json()["pid"] in up.pids()
    up.signal(signal.SIGTERM)
    assert up.end() == 0


@pytest.mark.parametrize("end", ["ctrl-c", "closed terminal"])
def test_a_terminal_shows_bars_while_loading_and_its_end_drains(end: str, up: Up) -> None:
    (up.folder / "script.json").write_text(json.dumps([{"load_s": 0.6}]))
    (up.folder / "m.yaml").write_text(yaml.safe_dump(manifest()))
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(up.folder)
        os.execve(
            sys.executable,
            up.command("-f", "m.yaml"),
            {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"},
        )
    shown = ""
    while "Ctrl-C drains" not in shown:
        shown += os.read(terminal, 65536).decode()
    assert "━" in shown
    assert "loading weights" in shown
    with stream(up) as lines:
        assert next(lines) == "data: 0"
        if end == "ctrl-c":
            os.write(terminal, b"\x03")
        else:
            os.close(terminal)
        assert "data: [DONE]" in list(lines)
    if end == "ctrl-c":
        while not shown.endswith("\r\nstopped\r\n"):
            shown += os.read(terminal, 65536).decode()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    if end == "ctrl-c":
        os.close(terminal)
