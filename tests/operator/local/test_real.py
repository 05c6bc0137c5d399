"""From a manifest to an answer with the real engine, router and model: nothing here is a stand-in."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shoal_operator.local.demo import place_model
from shoal_operator.local.ports import free_ports
from tests.operator.local.liveness import wait_gone

REPOSITORY = Path(__file__).parents[3]
MANIFEST = REPOSITORY / "examples/smollm2.yaml"
WAIT_S = 90.0


def test_the_demo_answers_and_the_second_prompt_comes_from_the_cache_of_the_same_replica(
    tmp_path: Path,
) -> None:
    command = [
        sys.executable,
        "-m",
        "shoal_operator.local.demo",
        "-f",
        str(MANIFEST),
        "--models-dir",
        str(tmp_path),
    ]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=WAIT_S)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    served = re.findall(r"replica (\S+), (\d+) of (\d+) prompt tokens from cache", run.stdout)
    assert len(served) == 2
    (first, cold, _), (second, cached, prompt) = served
    assert first == second
    assert first in ("smollm2-0", "smollm2-1")
    assert int(cold) == 0
    assert int(prompt) - 32 < int(cached) < int(prompt)  # all whole blocks of the system prompt
    assert "A  The shop is closed on Sunday" in run.stdout


class Fleet:
    """`shoal up` of the example, ready."""

    def __init__(self, folder: Path) -> None:
        port = free_ports(1)[0]
        self._log = folder / "log"
        self._ready_file = folder / "ready.json"
        place_model(folder)
        command = [sys.executable, "-m", "shoal_operator.local.up", "-f", str(MANIFEST), "--port", str(port)]
        command += ["--models-dir", str(folder), "--ready-file", str(self._ready_file)]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)
        self.wait_for(self._ready_file.exists)
        self.facts: dict[str, Any] = json.loads(self._ready_file.read_text())
        self.client = httpx.Client(base_url=self.facts["url"], timeout=WAIT_S, trust_env=False)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, condition: Any) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not condition():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline_s, self.log
            time.sleep(0.05)

    def ask(self, question: str) -> httpx.Response:
        body = {"model": "smollm2-135m", "messages": [{"role": "user", "content": question}], "max_tokens": 4}
        return self.client.post("/v1/chat/completions", json=body)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.client.close()
    fleet.process.kill()
    fleet.process.wait()


def test_a_killed_replica_costs_no_request_and_serves_again(fleet: Fleet) -> None:
    victim = fleet.facts["replicas"][0]
    questions = (f"{number} plus {number}?" for number in itertools.count())  # each has a home of its own
    fleet.wait_for(lambda: fleet.ask(next(questions)).headers["x-shoal-replica"] == victim["url"])

    os.kill(victim["pid"], signal.SIGKILL)
    assert [fleet.ask(next(questions)).status_code for _ in range(16)] == [200] * 16
    assert "was killed by SIGKILL" in fleet.log

    fleet.wait_for(lambda: fleet.ask(next(questions)).headers["x-shoal-replica"] == victim["url"])
    restarted = re.compile(rf"{victim['name']}  restarting.*{victim['name']}  ready", re.S)
    fleet.wait_for(lambda: restarted.search(fleet.log))
    fleet.process.send_signal(signal.SIGTERM)
    assert fleet.process.wait(WAIT_S) == 0, fleet.log
    wait_gone([replica["pid"] for replica in fleet.facts["replicas"]])
