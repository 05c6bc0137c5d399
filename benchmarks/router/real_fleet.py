"""Real engines with a tiny model, and routers in front of them, as processes that may be killed and started again.

Routers are compiled, as their image has them; peers.compile_ours makes that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
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
from peers import COMPILED
from tiny_model import write_tiny_model

ENGINE = Path(__file__).resolve().parents[2] / "engine"
MODEL = "tiny"
START_TIMEOUT_S = 180.0
KV_BYTES = 32 << 20


class WarmStart:
    """Starts engines quickly; see warm_start.py."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).parent / "warm_start.py")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True
        )
        self._answer()

    def start(self, argv: Sequence[str], log: Path) -> int:
        """The id of a new process, which leads a session of its own."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"argv": [*argv], "log": str(log)}) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


class Server:
    """One process with children of its own; `kill` takes all of them at once, as a machine that fails does."""

    def __init__(
        self, module: str, argv: Sequence[str], port: int, log: Path, warm: WarmStart | None = None
    ) -> None:
        self.port = port
        self.up = False  # was ready and has not been killed since
        self._module = module
        self._argv = argv
        self._log = log
        self._warm = warm
        self._pid = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._warm is not None:
            self._pid = self._warm.start(self._argv, self._log)
            return
        command = [sys.executable, "-m", self._module, *self._argv]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, env=environment(), start_new_session=True)
        self._pid = self._process.pid

    def kill(self) -> None:
        self.up = False
        with contextlib.suppress(ProcessLookupError):
            if self._pid:
                os.killpg(self._pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    async def ready(self) -> None:
        """Wait until it serves; one that ends before is started again, as a kubelet would."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not await asyncio.to_thread(answers, self.port):
            if time.monotonic() > deadline_s:
                raise SystemExit(f"a server did not start; its log:\n{self._log.read_text()[-2000:]}")
            if not self._lives():
                self.start()
            await asyncio.sleep(0.1)
        self.up = True

    def _lives(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        return Path(f"/proc/{self._pid}").exists()

    async def restart(self) -> None:
        self.start()
        await self.ready()


def environment() -> dict[str, str]:
    # warm_start.py forks processes that speak gRPC; what is forked does not.
    return {
        **os.environ,
        "PYTHONPATH": f"{COMPILED}:{ENGINE}",
        "OMP_NUM_THREADS": "1",
        "GRPC_ENABLE_FORK_SUPPORT": "0",
    }


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def engines(folder: Path, count: int, warm: WarmStart | None) -> list[Server]:
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
        argv = [str(model), *flags, *where]
        servers.append(Server("shoal_engine", argv, port, folder / f"engine{number}.log", warm))
    return servers


def routers(folder: Path, count: int, replicas: Sequence[Server]) -> list[Server]:
    """Routers that know nothing of one another. Requests may wait in them for long: few cores are no failure."""
    patient = ["--overload-queue-s=60", "--overload-max-queued=4096"]
    endpoints = [flag for each in replicas for flag in ("--endpoint", f"http://127.0.0.1:{each.port}")]
    return [
        Server("shoal_router", [f"--port={port}", *patient, *endpoints], port, folder / f"router{number}.log")
        for number, port in enumerate(free_ports(count))
    ]
