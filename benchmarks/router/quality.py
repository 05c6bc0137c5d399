"""What a router's choice is worth: cached share of prompt tokens, time to first token, balance.

    python benchmarks/router/quality.py [--workloads shared,hot] [--seconds 20] [--only shoal,smg]

The workloads of workloads.py against four simulated engines, the same seed for every router: first no router (the client
takes turns), then ours with one, two and four routers side by side, then the peers. The first quarter is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from dataclasses import dataclass, field

import uvloop
from fleet import LOAD_CORE, Fleet
from load import Client, chat, connect, percentile
from peers import OURS, PEERS, Peer, install
from workloads import WORKLOADS, Turn, Workload, next_turn

SEED = 7
DRAIN_S = 20.0


@dataclass
class Outcome:
    """Of one workload on one fleet."""

    first_token_ms: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    failed: int = 0


class Play:
    """A workload in progress: requests take the ports in turn."""

    def __init__(self, ports: list[int], counted_from_s: float) -> None:
        self.outcome = Outcome()
        self._ports = ports
        self._counted_from_s = counted_from_s
        self._idle: dict[int, list[Client]] = {port: [] for port in ports}
        self._sent = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, workload: Workload, seconds: float) -> Outcome:
        rng = random.Random(SEED)
        turns = list(workload.turns(rng, seconds))
        start = time.perf_counter()
        for number, turn in enumerate(turns):
            await asyncio.sleep(max(0.0, start + turn.after_s - time.perf_counter()))
            counted = turn.after_s >= self._counted_from_s
            task = asyncio.create_task(self._session(turn, random.Random(SEED + number), start, counted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_S)
        return self.outcome

    async def _session(self, turn: Turn, rng: random.Random, start: float, counted: bool) -> None:
        await self._send(turn, counted)
        while turn.left:
            turn = next_turn(turn, rng)
            await asyncio.sleep(turn.after_s)
            await self._send(turn, time.perf_counter() - start >= self._counted_from_s)

    async def _send(self, turn: Turn, counted: bool) -> None:
        port = self._ports[self._sent % len(self._ports)]
        self._sent += 1
        client = self._idle[port].pop() if self._idle[port] else await connect(port)
        ended: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        sent = time.perf_counter()

        def first() -> None:
            if counted:
                self.outcome.first_token_ms.append(1000 * (time.perf_counter() - sent))

        def failed(why: str) -> None:
            if not ended.done():
                ended.set_result(None)

        client.on_first = first
        client.on_done = ended.set_result
        client.on_failed = failed
        client.send(chat(turn.prompt, stream=True, max_tokens=turn.output_tokens))
        tail = await ended
        if tail is None:
            self.outcome.failed += 1
            return
        self._idle[port].append(client)
        if counted:
            usage = json.loads(
                b"{" + tail[tail.rindex(b'"usage"') : tail.rindex(b"}\n\ndata: [DONE]")] + b"}"
            )
            self.outcome.prompt_tokens += usage["usage"]["prompt_tokens"]
            self.outcome.cached_tokens += usage["usage"]["prompt_tokens_details"]["cached_tokens"]


def measure(name: str, workload: Workload, seconds: float, peer: Peer | None, routers: int) -> None:
    with Fleet(peer, ["--cache-blocks", str(workload.cache_blocks)], routers=routers) as fleet:
        before = fleet.requests()
        outcome = uvloop.run(Play(fleet.ports, seconds / 4).run(workload, seconds))
        requests = [after - base for after, base in zip(fleet.requests(), before, strict=True)]
    firsts = sorted(outcome.first_token_ms)
    hits = outcome.cached_tokens / max(1, outcome.prompt_tokens)
    p50, p90, p99 = (percentile(firsts, share) for share in (0.5, 0.9, 0.99))
    imbalance = max(requests) * len(requests) / sum(requests)
    print(
        f"  {name:18} hit {hits:6.1%}   TTFT p50 {p50:6.0f}  p90 {p90:6.0f}  p99 {p99:6.0f} ms"
        f"   max/mean {imbalance:4.2f}   {sum(requests)} requests, {outcome.failed} failed",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--only", default="", help="names of routers, comma-separated")
    flags = parser.parse_args()
    install()
    os.sched_setaffinity(0, {LOAD_CORE})
    runs: list[tuple[str, Peer | None, int]] = [("client, in turn", None, 0)]
    runs += [(f"shoal, {count} routers", OURS, count) for count in (1, 2, 4)]
    runs += [(f"{peer.name} {peer.version}", peer, 1) for peer in PEERS]
    for name in flags.workloads.split(","):
        print(f"{name}:", flush=True)
        for title, peer, routers in runs:
            if not flags.only or (peer and peer.name in flags.only.split(",")):
                measure(title, WORKLOADS[name], flags.seconds, peer, routers)


if __name__ == "__main__":
    main()
