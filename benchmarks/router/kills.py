"""Replicas, or a router, are killed every few seconds under load: does any client notice?

Real engines with a tiny model on the CPU, a real router, streams of 200 tokens at a fixed rate: greedy and seeded, chat
and completions, with stop strings, penalties, log probabilities and usage. Every answer is compared with that of an
undisturbed run. Replicas: nothing may fail. A router: the streams that it had open are lost, and nothing else.

    python benchmarks/router/kills.py --kills 100
    python benchmarks/router/kills.py --kill router --kills 10
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import re
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heard import Heard, ask
from peers import compile_ours
from real_fleet import MODEL, Server, WarmStart, engines, routers

TOKENS = 200
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
WAYS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "stream_options": {"include_usage": True}},
    {"temperature": 0.0, "presence_penalty": 0.6, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 1.3, "top_p": 0.9, "top_k": 80, "seed": 8, "stream_options": {"include_usage": True}},
    {"temperature": 0.9, "seed": 9, "stop": ["e!", "zq", "   "]},
    {"temperature": 1.0, "seed": 10, "logprobs": True},
    {"temperature": 1.0, "seed": 11, "min_tokens": 150, "ignore_eos": False},
]
Case = tuple[str, dict[str, Any]]
STARTED_S = time.monotonic()


def cases() -> list[Case]:
    """Every way for both paths, with prompts that share a beginning in threes."""
    made: list[Case] = []
    for number, (path, way) in enumerate(itertools.product((CHAT, COMPLETIONS), WAYS)):
        text = f"System prompt number {number // 3}. " * 12 + f"Question {number}: what now?"
        body = {"model": MODEL, "max_tokens": TOKENS, "stream": True, "ignore_eos": True, **way}
        if path == CHAT:
            body["messages"] = [{"role": "user", "content": text}]
        else:
            body["prompt"] = text
            if "logprobs" in body:
                body["logprobs"] = 3
        made.append((path, body))
    return made


class Load:
    """Requests at a fixed rate, whatever becomes of them, each to a router that is up; `wrong` says what went wrong."""

    def __init__(self, fronts: Sequence[Server], rate: float, seed: int) -> None:
        self.heard: list[Heard] = []
        self.under_way = 0
        self.wrong: list[tuple[Heard, str]] = []
        self._fronts = fronts
        self._rate = rate
        self._rng = random.Random(seed)
        self._cases = cases()
        self._expected: list[dict[str, Any]] = []
        self._names = itertools.count()

    async def learn(self) -> None:
        """Take the undisturbed answers, twice: they must not differ."""
        for turn in range(2):
            asked = [self._one(case) for case in self._cases]
            for number, heard in enumerate(await asyncio.gather(*asked)):
                if heard.problem:
                    raise SystemExit(f"undisturbed, and yet: {heard.problem}")
                if turn and heard.content != self._expected[number]:
                    raise SystemExit(f"two undisturbed answers differ: {self._cases[number]}")
                if not turn:
                    self._expected.append(heard.content)
        self.heard.clear()

    async def run(self, stop: asyncio.Event) -> None:
        tasks: set[asyncio.Task[None]] = set()
        due_s = time.monotonic()
        while not stop.is_set():
            task = asyncio.create_task(self._check(self._rng.randrange(len(self._cases))))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            due_s += self._rng.expovariate(self._rate)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        await asyncio.gather(*tasks)

    async def _check(self, number: int) -> None:
        self.under_way += 1
        heard = await self._one(self._cases[number])
        self.under_way -= 1
        self.heard.append(heard)
        if heard.problem:
            self.wrong.append((heard, heard.problem))
        elif (content := heard.content) != self._expected[number]:
            self.wrong.append(
                (heard, f"differs: {self._cases[number]}\n  {content}\n  {self._expected[number]}")
            )

    async def _one(self, case: Case) -> Heard:
        while True:
            up = [front for front in self._fronts if front.up]
            front = self._rng.choice(up or list(self._fronts))
            name = f"k{next(self._names)}"
            # No two bodies are equal: one that is taken for the cause of two deaths is the only one refused.
            body = {**case[1], "user": name}
            try:
                return await ask(front.port, case[0], body, name)
            except OSError:  # nobody listens: as a Service would, try another
                await asyncio.sleep(0.01)


class Killer:
    """Kills one of the servers every few seconds, as long as `least` are left, and starts it again."""

    def __init__(self, servers: Sequence[Server], every_s: float, least: int, seed: int) -> None:
        self.killed: list[tuple[float, int]] = []  # when, and on which port
        self._servers = servers
        self._every_s = every_s
        self._least = least
        self._rng = random.Random(seed)

    async def run(self, kills: int, seconds: float, load: Load) -> None:
        ends_s = time.monotonic() + seconds
        restarts: set[asyncio.Task[None]] = set()
        due_s = time.monotonic() + self._every_s
        while len(self.killed) < kills and time.monotonic() < ends_s:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            while sum(server.up for server in self._servers) <= self._least:
                await asyncio.sleep(0.05)
            server = self._rng.choice([each for each in self._servers if each.up])
            self.killed.append((time.monotonic(), server.port))
            server.kill()
            restart = asyncio.create_task(server.restart())
            restarts.add(restart)
            restart.add_done_callback(restarts.discard)
            due_s = max(due_s, time.monotonic() - 1.0) + self._every_s
            left = sum(server.up for server in self._servers)
            say(
                f"kill {len(self.killed)}: {left} left, {load.under_way} requests under way, {len(load.heard)} ended"
            )
        await asyncio.sleep(self._every_s)
        await asyncio.gather(*restarts)


def say(what: str) -> None:
    print(f"{time.monotonic() - STARTED_S:6.1f} s  {what}", file=sys.stderr, flush=True)


def explained(heard: Heard, killer: Killer) -> bool:
    """Whether a router was killed that had this stream open."""
    return any(
        heard.began_s <= at <= heard.ended_s + 1.0 and heard.port == port for at, port in killer.killed
    )


def told(fronts: Sequence[Server]) -> dict[str, float]:
    """Resumes, retries and quarantines as the routers count them."""
    counts: dict[str, float] = {}
    for front in fronts:
        with urllib.request.urlopen(f"http://127.0.0.1:{front.port}/metrics") as reply:
            text = reply.read().decode()
        wanted = r"(?m)^shoal_router_((?:resumes|resumed_tokens|retries|quarantines)_total\S*) (\S+)$"
        for name, value in re.findall(wanted, text):
            counts[name] = counts.get(name, 0) + float(value)
    return counts


async def measure(args: argparse.Namespace, folder: Path) -> int:
    warm = None if args.cold else WarmStart()
    replicas = engines(folder, args.replicas, warm)
    fronts = routers(folder, 2 if args.kill == "router" else 1, replicas)
    servers = [*replicas, *fronts]
    try:
        for server in servers:
            server.start()
        await asyncio.gather(*[server.ready() for server in servers])
        await asyncio.sleep(2.0)
        load = Load(fronts, args.rate, args.seed)
        say("all are ready")
        await load.learn()
        say("the undisturbed answers are known")
        victims = fronts if args.kill == "router" else replicas
        least = 1 if args.kill == "router" else args.least
        killer = Killer(victims, args.every, least, args.seed)
        stop = asyncio.Event()
        running = asyncio.create_task(load.run(stop))
        began_s = time.monotonic()
        await killer.run(args.kills, args.seconds, load)
        took_s = time.monotonic() - began_s
        stop.set()
        await running
        return report(args, load, killer, took_s, told(fronts))
    finally:
        for server in servers:
            server.kill()
        if warm is not None:
            warm.stop()


def report(
    args: argparse.Namespace, load: Load, killer: Killer, took_s: float, counts: dict[str, float]
) -> int:
    failed = load.wrong
    if args.kill == "router":
        failed = [(heard, why) for heard, why in load.wrong if not explained(heard, killer)]
        print(f"streams open at a router that was killed: {len(load.wrong) - len(failed)}")
    for _, why in failed[:5]:
        print(f"FAILED {why}")
    pauses = sorted(heard.longest_pause_s for heard in load.heard)
    print(
        f"{len(killer.killed)} kills of a {args.kill} in {took_s:.0f} s, {len(load.heard)} requests, "
        f"{len(failed)} failed; longest pause of a stream p50 {pauses[len(pauses) // 2]:.2f} s, "
        f"p99 {pauses[int(len(pauses) * 0.99)]:.2f} s, slowest {pauses[-1]:.2f} s"
    )
    print(", ".join(f"{name} {value:.0f}" for name, value in sorted(counts.items())))
    return len(failed) > 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kill", choices=("replica", "router"), default="replica")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=3600.0, help="end after so long, with fewer kills")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two kills")
    parser.add_argument("--rate", type=float, default=20.0, help="requests per second")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--least", type=int, default=2, help="replicas that a kill leaves; it waits for them")
    parser.add_argument("--cold", action="store_true", help="start engines as users do, 8 s of CPU each")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    compile_ours()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server is left over
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(measure(args, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
