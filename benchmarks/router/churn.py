"""How true a router's index is: real engines whose caches are too small for all prefixes, killed, cut off and misheard.

    [PYTHONPATH=build/compiled] python benchmarks/router/churn.py [--seconds 600] [--replicas 3] [--rate 12]

Chat requests whose beginnings come and go by Zipf's law; a router in this process, so that its index can be looked at.
On the way an update is lost, a link is cut, and an engine is killed with SIGKILL and started again. A second watcher asks
each engine for a snapshot; agreement is the share of (replica, tag) pairs that both know of all that either knows:
at rest, while nothing is in flight, and live, where the router may be a tenth of a second behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import uvloop
from fleet import free_ports
from real_fleet import MODEL, Server
from tiny_model import write_tiny_model

from shoal_api import engine_state_pb2 as pb
from shoal_router.app import Router
from shoal_router.discovery import Address, StaticDiscovery
from shoal_router.endpoints import Endpoint
from shoal_router.engine_link import watch
from shoal_router.settings import RouterSettings

PREFIXES, PREFIX_BYTES = 120, 1500  # one byte is one token of the tiny model
CACHE_BYTES = 24 << 20  # 49,152 tokens of it: thirty prefixes
REPLACED_EVERY_S = 3.0
ENOUGH = 0.99


class Faults:
    """Opens the router's streams, and loses or ends what it is told to."""

    def __init__(self) -> None:
        self.lose: set[str] = set()
        self.cut: set[str] = set()

    async def open(self, target: str, watcher: str) -> AsyncGenerator[pb.Update, None]:
        async with aclosing(watch(target, watcher)) as updates:
            async for update in updates:
                if target in self.cut:
                    self.cut.remove(target)
                    return
                if target in self.lose and (update.stored or update.evicted) and not update.snapshot:
                    self.lose.remove(target)
                    continue
                yield update


class Traffic:
    """Requests of many clients; `gate` lets new ones begin."""

    def __init__(self, port: int, rng: random.Random) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.sent = self.failed = 0
        self._url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self._rng = rng
        self._prefixes = [self._prefix() for _ in range(PREFIXES)]
        self._open: set[asyncio.Task[None]] = set()

    def _prefix(self) -> str:
        return self._rng.randbytes(PREFIX_BYTES // 2).hex()

    async def run(self, rate: float) -> None:
        weights = [1 / (place + 1) ** 0.8 for place in range(PREFIXES)]
        replaced_s = time.monotonic()
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:
            while True:
                await asyncio.sleep(self._rng.expovariate(rate))
                await self.gate.wait()
                if time.monotonic() - replaced_s > REPLACED_EVERY_S:
                    replaced_s = time.monotonic()
                    self._prefixes[self._rng.randrange(PREFIXES)] = self._prefix()
                prefix = self._rng.choices(self._prefixes, weights)[0]
                task = asyncio.create_task(self._ask(client, prefix))
                self._open.add(task)
                task.add_done_callback(self._open.discard)

    async def _ask(self, client: httpx.AsyncClient, prefix: str) -> None:
        self.sent += 1
        question = f"{prefix} question {self.sent}"
        body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "max_tokens": 8}
        try:
            reply = await client.post(self._url, content=json.dumps(body, separators=(",", ":")))
            self.failed += reply.status_code != 200
        except httpx.TransportError:
            self.failed += 1

    async def rest(self) -> None:
        """Let everything end that has begun, and its news arrive."""
        self.gate.clear()
        while self._open:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)


@dataclass
class Agreement:
    """Pairs that router and engines both know, of those that either knows."""

    both: int = 0
    either: int = 0

    @property
    def share(self) -> float:
        return self.both / self.either if self.either else 1.0


@dataclass
class Course:
    """What was seen on the way."""

    live: list[float] = field(default_factory=list)
    rest: list[float] = field(default_factory=list)


async def held(endpoint: Endpoint) -> set[int]:
    """What the engine says to a watcher of its own."""
    target = f"{endpoint.address.host}:{endpoint.report.grpc_port}"
    async with aclosing(watch(target, "churn")) as updates:
        return set((await anext(updates)).stored)


async def agreement(router: Router, engines: list[Server]) -> Agreement:
    """Of the engines that are up; of one that is not linked the router knows nothing for sure."""
    total = Agreement()
    for endpoint, engine in zip(router.endpoints, engines, strict=True):
        if not engine.up:
            continue
        theirs = await held(endpoint)
        reported = router.index.reported(endpoint.slot)
        ours = set() if reported is None else set(reported.blocks)
        total.both += len(ours & theirs)
        total.either += len(ours | theirs)
    return total


class Churn:
    """One run: a router over real engines, its traffic and its mishaps."""

    def __init__(self, router: Router, engines: list[Server], faults: Faults, traffic: Traffic) -> None:
        self.router, self.engines, self.faults, self.traffic = router, engines, faults, traffic
        self.course = Course()

    def _target(self, number: int) -> str:
        endpoint = list(self.router.endpoints)[number]
        return f"{endpoint.address.host}:{endpoint.report.grpc_port}"

    async def linked(self) -> None:
        async with asyncio.timeout(30):
            while not all(endpoint.linked for endpoint in self.router.endpoints):
                await asyncio.sleep(0.05)

    async def look(self, seconds: float) -> None:
        """Live for so long, then once at rest."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            await asyncio.sleep(min(2.0, seconds))
            self.course.live.append((await agreement(self.router, self.engines)).share)
        await self.traffic.rest()
        found = await agreement(self.router, self.engines)
        self.course.rest.append(found.share)
        self.traffic.gate.set()
        tallies = [endpoint.tally for endpoint in self.router.endpoints]
        counts = f"{sum(t.updates for t in tallies)} updates, {sum(t.snapshots for t in tallies)} snapshots"
        print(
            f"    at rest {found.share:7.2%} of {found.either} pairs; {counts}, {sum(t.gaps for t in tallies)} gaps,"
            f" {self.traffic.sent} requests, {self.traffic.failed} failed",
            flush=True,
        )

    async def run(self, seconds: float) -> None:
        part = seconds / 5
        print("  churn alone")
        await self.look(part)
        print("  an update is lost")
        self.faults.lose.add(self._target(0))
        await self.look(part)
        print("  a link is cut")
        self.faults.cut.add(self._target(1 % len(self.engines)))
        await self.look(part)
        print("  an engine is killed and started again")
        self.engines[-1].kill()
        await asyncio.sleep(1.0)
        await self.engines[-1].restart()
        await self.linked()
        await self.look(part)
        print("  churn alone")
        await self.look(part)

    def verdict(self) -> bool:
        tallies = [endpoint.tally for endpoint in self.router.endpoints]
        prompt, predicted, cached = (
            sum(getattr(tally, name) for tally in tallies)
            for name in ("prompt_tokens", "predicted_tokens", "cached_tokens")
        )
        live, rest = sorted(self.course.live), self.course.rest
        print(f"agreement at rest: least {min(rest):.2%}, mean {sum(rest) / len(rest):.2%}")
        print(f"agreement live: least {live[0]:.2%}, median {live[len(live) // 2]:.2%}")
        print(
            f"prompt tokens {prompt}, predicted cached {predicted / prompt:.2%}, really {cached / prompt:.2%}"
        )
        return min(rest) >= ENOUGH


def engine(folder: Path, number: int, port: int, grpc_port: int) -> Server:
    flags = ["--load-format=dummy", "--dtype=float32", "--num-threads=1", f"--served-model-name={MODEL}"]
    size = ["--max-num-seqs=16", f"--kv-cache-memory-bytes={CACHE_BYTES}"]
    where = [f"--port={port}", f"--grpc-port={grpc_port}"]
    return Server("shoal_engine", [str(folder), *flags, *size, *where], port, folder / f"engine{number}.log")


async def run(seconds: float, replicas: int, rate: float) -> bool:
    with tempfile.TemporaryDirectory() as name:
        folder, ports = Path(name), free_ports(2 * replicas)
        write_tiny_model(folder)
        engines = [engine(folder, i, ports[2 * i], ports[2 * i + 1]) for i in range(replicas)]
        faults = Faults()
        addresses = [Address.from_url(f"http://127.0.0.1:{each.port}") for each in engines]
        settings = RouterSettings(addresses=tuple(addresses), port=0)
        router = Router(settings, StaticDiscovery(addresses), rng=random.Random(0), open_stream=faults.open)
        try:
            await asyncio.gather(*(each.restart() for each in engines))
            await router.start()
            traffic = Traffic(router.port, random.Random(1))
            churn = Churn(router, engines, faults, traffic)
            await churn.linked()
            sending = asyncio.create_task(traffic.run(rate))
            await churn.run(seconds)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            well = churn.verdict()
            await router.stop(0.0)
        finally:
            for each in engines:
                each.kill()
    return well


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--rate", type=float, default=12.0, help="requests per second")
    flags = parser.parse_args()
    raise SystemExit(not uvloop.run(run(flags.seconds, flags.replicas, flags.rate)))


if __name__ == "__main__":
    main()
