"""Processes of a router benchmark: simulated engines on one core, routers on another, and what they cost."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from load import KEY
from peers import Peer

HERE = Path(__file__).parent
REPLICAS = 4
ROUTER_CORE, LOAD_CORE = 0, 1
START_TIMEOUT_S = 60.0
BODY = b'{"model":"sim","messages":[{"role":"user","content":"ready?"}],"max_tokens":1}'


class Fleet:
    """Four engines and one or more routers of a kind in front of them; a context manager."""

    def __init__(
        self, peer: Peer | None, engine_flags: Iterable[str] = (), *, routers: int = 1, push: bool = True
    ) -> None:
        ports = free_ports(2 * REPLICAS + 2 * routers)
        self.engine_ports, grpc_ports = ports[:REPLICAS], ports[REPLICAS : 2 * REPLICAS]
        flags = ["--ports", ",".join(map(str, self.engine_ports)), *engine_flags]
        if push:
            flags += ["--grpc-ports", ",".join(map(str, grpc_ports))]
        self.routers: list[subprocess.Popen[bytes]] = []
        self.engines = start(LOAD_CORE, [sys.executable, str(HERE / "simulated_engine.py"), *flags])
        self.ports: list[int] = list(self.engine_ports) if peer is None else []
        try:
            wait_for(self.engine_ports)
            for i in range(routers if peer is not None else 0):
                assert peer is not None
                port, metrics_port = ports[2 * REPLICAS + 2 * i :][:2]
                self.routers.append(start(ROUTER_CORE, peer.argv(port, metrics_port, self.engine_ports)))
                self.ports.append(port)
            wait_for(self.ports)
        except BaseException:
            self.__exit__()
            raise
        time.sleep(1.5)  # watches are established, health is known

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.routers, self.engines):
            process.terminate()
        for process in (*self.routers, self.engines):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def cpu_seconds(self) -> float:
        """Time that the routers have been on a core so far, threads and children included."""
        return sum(cpu_seconds(process.pid) for process in self.routers)

    def requests(self) -> list[int]:
        """Requests that each engine has had so far."""
        counts = []
        for port in self.engine_ports:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
                lines = reply.read().decode().splitlines()
            counts += [
                int(line.split()[1]) for line in lines if line.startswith("vllm:request_success_total")
            ]
        return counts


def start(core: int, argv: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "TOKIO_WORKER_THREADS": "1"}
    log = open(f"/tmp/shoal-bench-{Path(argv[0]).name}.log", "ab")  # noqa: SIM115 - the process keeps it
    command = ["taskset", "-c", str(core), *argv]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def wait_for(ports: list[int]) -> None:
    """Until a chat request is answered on each."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    deadline = time.monotonic() + START_TIMEOUT_S
    waiting = list(ports)
    while waiting:
        request = urllib.request.Request(f"http://127.0.0.1:{waiting[0]}/v1/chat/completions", BODY, headers)
        try:
            with urllib.request.urlopen(request, timeout=5):
                waiting.pop(0)
        except OSError as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"nobody answers on port {waiting[0]}: {error}") from error
            time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def cpu_seconds(pid: int) -> float:
    """Of a process, its threads and its children, to the nanosecond. Threads that have ended are not in it."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
            children = (task / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(1e9 * cpu_seconds(int(child))) for child in children)
    return total / 1e9
