"""Real engines with a tiny model, and routers in front of them, as processes that may be killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from fleet import free_ports
from tiny_model import write_tiny_model

ROOT = Path(__file__).resolve().parents[2]
MODEL = "tiny"
START_TIMEOUT_S = 180.0
KV_BYTES = 32 << 20


class Server:
    """One process with children of its own; `kill` takes all of them at once, as a machine that fails does."""

    def __init__(self, command: Sequence[str], port: int, log: Path) -> None:
        self.port = port
        self.up = False  # was ready and has not been killed since
        self._command = command
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        paths = ":".join(str(ROOT / name) for name in ("crds", "router", "engine"))
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._command],
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def kill(self) -> None:
        self.up = False
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    async def ready(self) -> None:
        """Wait until it serves."""
        assert self._process is not None
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not await asyncio.to_thread(answers, self.port):
            if time.monotonic() > deadline_s or self._process.poll() is not None:
                raise SystemExit(f"a server did not start; its log is {self._log}")
            await asyncio.sleep(0.1)
        self.up = True

    async def restart(self) -> None:
        self.start()
        await self.ready()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def engines(folder: Path, count: int) -> list[Server]:
    """Replicas of one model, float32 and deterministic: the same request gets the same answer in any batch."""
    model = folder / "model"
    model.mkdir()
    write_tiny_model(model)
    fixed = [
        "--load-format=dummy",
        "--dtype=float32",
        "--deterministic",
        "--num-threads=1",
        "--max-num-seqs=64",
    ]
    servers = []
    for number, (port, grpc) in enumerate(zip(*[iter(free_ports(2 * count))] * 2, strict=True)):
        flags = [*fixed, f"--kv-cache-memory-bytes={KV_BYTES}", f"--served-model-name={MODEL}"]
        where = [f"--port={port}", f"--grpc-port={grpc}"]
        command = ["shoal_engine", str(model), *flags, *where]
        servers.append(Server(command, port, folder / f"engine{number}.log"))
    return servers


def routers(folder: Path, count: int, replicas: Sequence[Server]) -> list[Server]:
    """Routers that know nothing of one another. Requests may wait in them for long: few cores are no failure."""
    patient = ["--overload-queue-s=60", "--overload-max-queued=4096"]
    endpoints = [flag for each in replicas for flag in ("--endpoint", f"http://127.0.0.1:{each.port}")]
    return [
        Server(["shoal_router", f"--port={port}", *patient, *endpoints], port, folder / f"router{number}.log")
        for number, port in enumerate(free_ports(count))
    ]
