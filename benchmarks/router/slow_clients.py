"""What slow clients cost the others: some read a byte a second, some send one, beside healthy traffic.

    python benchmarks/router/slow_clients.py [--seconds 40] [--readers 1000] [--trickles 2000]

Healthy clients stream at a steady rate all the time: first alone, then beside the slow ones, then alone again. Their
first tokens and the router's memory tell. The engine has every answer ready, so that the router is what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import resource
import socket
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop
from fleet import LOAD_CORE, ROUTER_CORE, free_ports, start, wait_for
from load import chat, percentile
from open_loop import OpenTenant
from overload import rss
from peers import OURS, compile_ours

HEALTHY_RATE = 100.0
ANSWER_TOKENS = 20
LONG_ANSWER_TOKENS = 5000  # 1 MB: more than all buffers between an engine and a client that does not read
HUGE_BODY_BYTES = 6_000_000
SLICES = 100  # of a second; in each of them a part of the slow clients moves its byte
ALLOWED = 1.10


class SlowClient:
    """One that reads or sends a byte whenever it is `moved`, and begins again when the router has cut it off."""

    def __init__(self, port: int, request: bytes) -> None:
        self.cut = 0
        self._port = port
        self._request = request
        self._sock: socket.socket | None = None
        self._at = 0

    def move(self, first_bytes: int) -> None:
        try:
            self._move(first_bytes)
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            self.cut += 1

    def _move(self, first_bytes: int) -> None:
        if self._sock is None:
            self._sock = socket.socket()
            self._sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVBUF, 4096
            )  # the kernel is not to read for it
            self._sock.settimeout(5.0)
            self._sock.connect(("127.0.0.1", self._port))
            self._sock.sendall(self._request[:first_bytes])
            self._sock.setblocking(False)
            self._at = first_bytes
        elif self._at < len(self._request):
            self._sock.sendall(self._request[self._at : self._at + 1])
            self._at += 1
            self._sock.recv(4096)  # raises BlockingIOError as long as there is no reply
            raise ConnectionAbortedError
        elif not self._sock.recv(1):
            raise ConnectionAbortedError

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def slow_clients(port: int, readers: int, trickles: int, bodies: int, parent: Connection) -> None:
    """A process with all slow clients, until it is told to end; tells how many were cut off."""
    os.sched_setaffinity(0, {LOAD_CORE})
    long, short = chat("slow", stream=True, max_tokens=LONG_ANSWER_TOKENS), chat("x" * 4096)
    body_at = short.index(b"\r\n\r\n") + 4
    clients = [(SlowClient(port, long), len(long)) for _ in range(readers)]
    clients += [(SlowClient(port, short), body_at if i % 2 else 1) for i in range(trickles)]
    huge = chat("y" * HUGE_BODY_BYTES)
    clients += [(SlowClient(port, huge), len(huge) - 1000) for _ in range(bodies)]
    for number in range(sys.maxsize):
        if parent.poll():
            break
        begun = time.monotonic()
        for client, first_bytes in clients[number % SLICES :: SLICES]:
            client.move(first_bytes)
        time.sleep(max(0.0, 1 / SLICES - (time.monotonic() - begun)))
    for client, _ in clients:
        client.close()
    parent.send(sum(client.cut for client, _ in clients))


async def first_tokens(port: int, seconds: float) -> list[float]:
    """Sorted seconds to the first token of healthy clients."""
    tenant = OpenTenant(
        port, lambda rng: chat(rng.randbytes(128).hex(), stream=True, max_tokens=ANSWER_TOKENS), 1
    )
    await tenant.run(HEALTHY_RATE, seconds)
    await asyncio.sleep(1)
    await tenant.close()
    outcomes = tenant.outcomes
    if set(outcomes.statuses) != {200} or outcomes.broken:
        raise SystemExit(f"healthy clients got {outcomes.statuses}, {outcomes.broken} broken off")
    return sorted(outcomes.ttft_s)


async def run(port: int, router: int, flags: argparse.Namespace) -> bool:
    await first_tokens(port, 3)
    memory = {"alone": rss(router)}
    alone = await first_tokens(port, flags.seconds)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(
        target=slow_clients, args=(port, flags.readers, flags.trickles, flags.bodies, theirs)
    )
    process.start()
    await asyncio.sleep(4)
    beside_task = asyncio.create_task(first_tokens(port, flags.seconds))
    while not beside_task.done():
        await asyncio.sleep(1)
        memory["beside the slow"] = max(memory.get("beside the slow", 0), rss(router))
    ours.send(True)
    process.join()
    await asyncio.sleep(2)
    again = await first_tokens(port, flags.seconds)
    memory["afterwards"] = rss(router)
    kinds = f"{flags.readers} clients read and {flags.trickles} send a byte a second, {flags.bodies} leave 6 MB unfinished"
    print(f"{kinds}; {ours.recv()} were cut off")
    beside = beside_task.result()
    for name, times in (("alone", alone), ("beside", beside), ("again", again)):
        shown = ", ".join(
            f"p{100 * share:g} {1000 * percentile(times, share):.2f}" for share in (0.5, 0.9, 0.99)
        )
        print(f"  first token {name:6}: {shown} ms of {len(times)}")
    print("  router's memory: " + ", ".join(f"{name} {kib / 1024:.0f} MiB" for name, kib in memory.items()))
    ratio = percentile(beside, 0.99) / max(percentile(alone, 0.99), percentile(again, 0.99))
    print(f"  {'ok ' if ratio <= ALLOWED else 'NOT'} p99 is {ratio:.2f} times that without slow clients")
    return ratio <= ALLOWED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--trickles", type=int, default=2000)
    parser.add_argument("--bodies", type=int, default=0, help="clients that leave a body of 6 MB unfinished")
    flags = parser.parse_args()
    compile_ours()
    os.sched_setaffinity(0, {LOAD_CORE})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    engine_port, port, metrics_port = free_ports(3)
    script = str(Path(__file__).parent / "talkative_engine.py")
    processes = [start(LOAD_CORE, [sys.executable, script, "--port", str(engine_port)])]
    try:
        wait_for([engine_port])
        processes.append(start(ROUTER_CORE, OURS.argv(port, metrics_port, [engine_port])))
        wait_for([port])
        holds = uvloop.run(run(port, processes[1].pid, flags))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    raise SystemExit(not holds)


if __name__ == "__main__":
    main()
