"""What the router costs and what its choice is worth, against engines without it, in one run on this machine.

Overhead: requests/s and CPU per request of the router on one core, at 16-token and 2k-token prompts, beside
the same load sent straight to the engines. Routing: hit rate and time to first token on shared prompts,
beside round robin and random choice by the client. Engines are simulated (simulated_engine.py).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httptools
import uvloop

HERE = Path(__file__).parent
REPLICAS = 4
ROUTER_CORE, LOAD_CORE = 0, 1


class Client(asyncio.Protocol):
    """One keep-alive connection; `on_first` and `on_done` are called for each reply."""

    def __init__(self) -> None:
        self.on_first: Callable[[], None] = lambda: None
        self.on_done: Callable[[bytes], None] = lambda tail: None
        self.parser = httptools.HttpResponseParser(self)
        self.last = b""
        self.first = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self, request: bytes) -> None:
        self.first = True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self.last = data
        if self.first:
            self.first = False
            self.on_first()

    def on_message_complete(self) -> None:
        if self.parser.get_status_code() != 200:
            raise SystemExit(f"reply {self.parser.get_status_code()}: {self.last!r}")
        self.on_done(self.last)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def cpu_seconds(pid: int) -> float:
    """Time that a process has been on a core, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


class Fleet:
    """Simulated engines in one process and a router in front of them."""

    def __init__(self, *, instant: bool) -> None:
        *self.ports, self.router_port = free_ports(REPLICAS + 1)
        flags = ["--ports", ",".join(map(str, self.ports)), *(["--instant"] if instant else [])]
        self.engines = subprocess.Popen(
            [sys.executable, HERE / "simulated_engine.py", *flags], stdout=subprocess.PIPE
        )
        os.sched_setaffinity(self.engines.pid, {LOAD_CORE})
        assert self.engines.stdout is not None
        self.engines.stdout.readline()
        endpoints = [flag for port in self.ports for flag in ("--endpoint", f"http://127.0.0.1:{port}")]
        command = [sys.executable, "-m", "shoal_router", "--port", str(self.router_port), *endpoints]
        self.router = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        os.sched_setaffinity(self.router.pid, {ROUTER_CORE})
        time.sleep(2.5)

    def stop(self) -> None:
        for process in (self.router, self.engines):
            process.terminate()
        for process in (self.router, self.engines):
            process.wait()


def request(prompt: str, *, stream: bool = False, max_tokens: int = 1) -> bytes:
    fields = {
        "model": "sim",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "stream": stream,
    }
    body = json.dumps(fields).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: shoal\r\nContent-Type: application/json\r\n"
        f"Accept: application/json\r\nUser-Agent: bench/1\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def connect(port: int) -> Client:
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    return client


async def closed_loop(
    ports: list[int], requests: list[bytes], seconds: float, pid: int
) -> tuple[float, float]:
    """Requests/s and CPU seconds per request of process `pid` when 32 connections each send on a reply.

    Others use this machine: of ten slices of the run the cheapest is reported, and the quickest.
    """
    done = 0
    running = True

    def again(client: Client) -> None:
        nonlocal done
        done += 1
        if running:
            client.send(requests[done % len(requests)])

    clients = [await connect(ports[i % len(ports)]) for i in range(32)]
    for client in clients:
        client.on_done = lambda tail, client=client: again(client)
        client.send(requests[0])
    await asyncio.sleep(0.3)
    rates, costs = [], []
    for _ in range(10):
        before, used, start = done, cpu_seconds(pid), time.perf_counter()
        await asyncio.sleep(seconds / 10)
        rates.append((done - before) / (time.perf_counter() - start))
        costs.append((cpu_seconds(pid) - used) / max(1, done - before))
    running = False
    await asyncio.sleep(0.1)
    for client in clients:
        client.transport.close()
    return max(rates), min(costs)


async def overhead(seconds: float) -> None:
    fleet = Fleet(instant=True)
    try:
        for name, size in (("16-token", 64), ("2k-token", 8192)):
            rng = random.Random(1)
            requests = [request(rng.randbytes(size // 2).hex()) for _ in range(32)]
            direct, _ = await closed_loop(fleet.ports, requests, seconds, fleet.engines.pid)
            routed, cost = await closed_loop([fleet.router_port], requests, seconds, fleet.router.pid)
            print(
                f"{name} prompts: router {routed:8,.0f} req/s, {1e6 * cost:5.1f} us CPU/request"
                f" = {1 / cost:,.0f} req/s of one core; direct {direct:8,.0f} req/s"
            )
    finally:
        fleet.stop()


async def shared_prompts(
    port_of: Callable[[int], int], seconds: float, rate: float
) -> tuple[float, list[float]]:
    """Cached share of prompt tokens and times to first token, in the second half of an open-loop run."""
    rng = random.Random(7)
    systems = [rng.randbytes(4096).hex() for _ in range(32)]
    weights = [1 / (i + 1) ** 0.8 for i in range(32)]
    idle: dict[int, list[Client]] = {}
    firsts: list[float] = []
    prompt_tokens = cached_tokens = 0
    start = time.perf_counter()
    number, due = 0, start
    while due < start + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        port = port_of(number)
        system = rng.choices(systems, weights)[0]
        client = idle[port].pop() if idle.get(port) else await connect(port)
        sent, counted = time.perf_counter(), due > start + seconds / 2

        def first(sent: float = sent, counted: bool = counted) -> None:
            if counted:
                firsts.append(1000 * (time.perf_counter() - sent))

        def done(tail: bytes, client: Client = client, port: int = port, counted: bool = counted) -> None:
            nonlocal prompt_tokens, cached_tokens
            idle.setdefault(port, []).append(client)
            if counted:
                usage = json.loads(tail[6 : tail.index(b"\n")])["usage"]
                prompt_tokens += usage["prompt_tokens"]
                cached_tokens += usage["prompt_tokens_details"]["cached_tokens"]

        client.on_first, client.on_done = first, done
        client.send(request(system + f" question {number}", stream=True, max_tokens=16))
        number += 1
        due += rng.expovariate(rate)
    await asyncio.sleep(1.5)
    return cached_tokens / max(1, prompt_tokens), sorted(firsts)


async def routing(seconds: float) -> None:
    rng = random.Random(3)
    policies = {
        "round robin": lambda fleet: lambda n: fleet.ports[n % REPLICAS],
        "random": lambda fleet: lambda n: rng.choice(fleet.ports),
        "shoal router": lambda fleet: lambda n: fleet.router_port,
    }
    print(f"32 system prompts of 2k tokens, Zipf 0.8, 60 requests/s, {REPLICAS} replicas of 32k tokens:")
    for name, port_of in policies.items():
        fleet = Fleet(instant=False)
        try:
            hits, firsts = await shared_prompts(port_of(fleet), seconds, 60)
        finally:
            fleet.stop()
        p50, p99 = firsts[len(firsts) // 2], firsts[int(len(firsts) * 0.99)]
        print(f"  {name:13} hit rate {hits:6.1%}   TTFT p50 {p50:6.0f} ms   p99 {p99:6.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="per overhead measurement")
    parser.add_argument("--routing-seconds", type=float, default=8.0, help="per policy")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    if arguments.seconds:
        uvloop.run(overhead(arguments.seconds))
    if arguments.routing_seconds:
        uvloop.run(routing(arguments.routing_seconds))


if __name__ == "__main__":
    main()
