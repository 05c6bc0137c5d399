"""What a router costs: requests/s and CPU per request on one core, latency added, CPU per chunk of a stream.

    python benchmarks/router/overhead.py [--seconds 3] [--only shoal,smg]

Ours, the floor (bare_relay.c) and the peers one after the other in one run, each before the same simulated engines that
answer at once: router on core 0, engines and load on core 1. Of each figure the best of all slices of all repeats
counts, as others may use the machine; CPU time is the figure to trust. Ours has policy, metrics and API keys on.
"""

from __future__ import annotations

import argparse
import os
import random
from dataclasses import dataclass, field

import uvloop
from fleet import LOAD_CORE, Fleet
from load import Slice, chat, closed_loop, latencies, percentile, streams
from peers import FLOOR, OURS, PEERS, Peer, install

STREAMS, CHUNKS = 100, 100
# From chunk to chunk, 5,000 and 10,000 a second: what a router does beside them is shared by more.
PACES_MS = (20, 10)
PUBLISHED = "production-stack (published, routers.md): 748 us, 1,115 us with its prefix policy at 2k tokens, 31 us/chunk"


@dataclass
class Costs:
    """Of one router; `None` has not been measured."""

    rates: dict[str, float] = field(default_factory=dict)
    cost_us: dict[str, float] = field(default_factory=dict)
    added_p50_ms: float = 0.0
    added_p99_ms: float = 0.0
    chunk_us: dict[int, float] = field(default_factory=dict)  # by PACES_MS


def prompts(size: int) -> list[bytes]:
    rng = random.Random(1)
    return [chat(rng.randbytes(size // 2).hex()) for _ in range(32)]


async def measure(peer: Peer, seconds: float, repeats: int) -> Costs:
    costs = Costs()
    with Fleet(peer, ["--instant"]) as fleet:
        slices: dict[str, list[Slice]] = {"16": [], "2k": []}
        for _ in range(repeats):
            for name, size in (("16", 64), ("2k", 8192)):
                slices[name] += await closed_loop(fleet.ports, prompts(size), seconds, fleet.cpu_seconds)
        for name, parts in slices.items():
            costs.rates[name] = max(part.rate for part in parts)
            costs.cost_us[name] = min(part.cost_us for part in parts if part.requests)
        request = prompts(64)[0]
        added = []
        for _ in range(3 * repeats):
            direct = await latencies(fleet.engine_ports[0], request, 500)
            routed = await latencies(fleet.ports[0], request, 500)
            added.append([percentile(routed, share) - percentile(direct, share) for share in (0.5, 0.99)])
        costs.added_p50_ms = min(p50 for p50, _ in added)
        costs.added_p99_ms = min(p99 for _, p99 in added)
    for pace_ms in PACES_MS:
        with Fleet(peer, ["--instant", "--pace-ms", str(pace_ms)]) as fleet:
            parts = []
            for _ in range(repeats):
                parts += await streams(fleet.ports[0], STREAMS, CHUNKS, seconds, fleet.cpu_seconds)
            costs.chunk_us[pace_ms] = min(part.cost_us for part in parts)
    return costs


def show(name: str, costs: Costs, ours: Costs) -> None:
    cells = []
    for size in ("16", "2k"):
        times = costs.cost_us[size] / ours.cost_us[size]
        cells.append(f"{costs.rates[size]:8,.0f} {costs.cost_us[size]:6.1f} {times:5.1f}x")
    chunks = [f"{cost:8.1f} {cost / ours.chunk_us[pace]:5.1f}x" for pace, cost in costs.chunk_us.items()]
    print(f"{name:14}", *cells, f"{costs.added_p50_ms:7.3f} {costs.added_p99_ms:7.3f}", *chunks, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one closed loop")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="names of routers, comma-separated")
    flags = parser.parse_args()
    install()
    os.sched_setaffinity(0, {LOAD_CORE})
    chosen = [peer for peer in (OURS, FLOOR, *PEERS) if not flags.only or peer.name in flags.only.split(",")]
    for peer in chosen:
        print(f"{peer.name} {peer.version}: {' '.join(peer.command)}")
    print(PUBLISHED)
    print(f"{'':14} {'16-token prompts':>22} {'2k-token prompts':>22} {'added ms':>15} {'us/chunk at':>15}")
    one = f"{'req/s':>8} {'CPU us':>6} {'':6}"
    print(f"{'':14} {one} {one} {'p50':>7} {'p99':>7} {'5,000/s':>8} {'10,000/s':>15}")
    ours = None
    for peer in chosen:
        costs = uvloop.run(measure(peer, flags.seconds, flags.repeats))
        ours = ours or costs
        show(peer.name, costs, ours)


if __name__ == "__main__":
    main()
