"""`shoal serve` as a user runs it: a process of its own, with a real model."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.engine.server.running import until

KEY = "test-key"
ENGINE = [sys.executable, "-m", "shoal_engine"]


@dataclass(slots=True)
class Served:
    """A running `shoal serve`."""

    url: str
    process: subprocess.Popen[bytes]
    stderr: Path
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        headers = {"authorization": f"Bearer {KEY}"}
        self.http = httpx.Client(base_url=self.url, timeout=60, headers=headers)

    def log(self) -> list[dict[str, Any]]:
        return entries(self.stderr.read_text())

    def engine_pid(self) -> int:
        """The engine process, as the system knows it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
        return next(int(pid) for pid, command in commands.items() if b"engine_process" in command)

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + "{", name + " "))
        )


def entries(stderr: str) -> list[dict[str, Any]]:
    """The log, which is one JSON object per line and nothing else."""
    try:
        return [json.loads(line) for line in stderr.splitlines()]
    except ValueError:
        raise AssertionError(f"not one JSON object per line:\n{stderr}") from None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(*options: str) -> subprocess.Popen[bytes]:
    """The command itself; its stderr is the caller's to read."""
    return subprocess.Popen([*ENGINE, *options], stderr=subprocess.PIPE)


@contextlib.contextmanager
def serve(*options: str) -> Iterator[Served]:
    """Started and ready; ended by SIGTERM if the test has not ended it."""
    port, grpc_port = free_port(), free_port()  # other tests' engines would all like to have 9000
    with tempfile.TemporaryDirectory() as folder:
        stderr = Path(folder) / "stderr"
        with stderr.open("wb") as file:
            process = subprocess.Popen(
                [*ENGINE, f"--port={port}", f"--grpc-port={grpc_port}", f"--api-key={KEY}", *options],
                stderr=file,
                env={**os.environ, "SHOAL_API_KEY": ""},
            )
        served = Served(f"http://127.0.0.1:{port}", process, stderr)
        try:
            until(lambda: process.poll() is not None or _is_ready(served), timeout_s=120)
            assert process.poll() is None, stderr.read_text()
            yield served
        finally:
            served.http.close()
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            finally:
                process.kill()


def _is_ready(served: Served) -> bool:
    try:
        return served.http.get("/ready").status_code == 200
    except httpx.TransportError:
        return False
