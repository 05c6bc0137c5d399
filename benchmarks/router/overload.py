"""What is left of a fleet's work when far more is asked of it than it can do, and what the rest is told.

    python benchmarks/router/overload.py [--seconds 300] [--times 2,5]

Four simulated engines behind one router. First as many clients as keep every seat taken, each sending on a reply: that is
the capacity. Then clients that send at 2 and 5 times that rate whatever they get: one tenant with 30 % of the capacity,
one with all the rest. Then the capacity again. Nobody takes a seat for longer, so goodput is requests completed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import uvloop
from fleet import LOAD_CORE, Fleet, cpu_seconds
from load import KEY, chat, percentile
from open_loop import OpenTenant, Outcomes
from peers import OURS, compile_ours

POLITE, FLOOD = "polite-tenant-key", "flooding-tenant-key"
POLITE_SHARE = 0.3
PROMPT_BYTES, ANSWER_TOKENS = 2048, 64
REJECTED_WITHIN_S = 0.05
QUEUE_S = 5.0


def request(key: str) -> Callable[[random.Random], bytes]:
    def make(rng: random.Random) -> bytes:
        return chat(rng.randbytes(PROMPT_BYTES // 2).hex(), stream=True, max_tokens=ANSWER_TOKENS, key=key)

    return make


def keys_file(folder: str) -> str:
    entries = [{"name": "polite", "key": POLITE}, {"name": "flood", "key": FLOOD}]
    path = Path(folder) / "keys.json"
    path.write_text(json.dumps({"keys": entries}))
    return str(path)


async def capacity(fleet: Fleet, seconds: float) -> float:
    """Requests per second when every seat is taken all the time."""
    tenant = OpenTenant(fleet.ports[0], request(KEY), 1)
    rate = await tenant.saturate(160, seconds)
    await tenant.close()
    if set(tenant.outcomes.statuses) != {200}:
        print(f"  NOT all of 160 clients are served: {tenant.outcomes.statuses}")
    return rate


async def overload(fleet: Fleet, rate: float, times: float, seconds: float) -> tuple[Outcomes, Outcomes]:
    polite = OpenTenant(fleet.ports[0], request(POLITE), 2)
    flood = OpenTenant(fleet.ports[0], request(FLOOD), 3)
    share = POLITE_SHARE * rate
    await asyncio.gather(polite.run(share, seconds), flood.run(times * rate - share, seconds))
    await asyncio.sleep(2 * QUEUE_S)
    await asyncio.gather(polite.close(), flood.close())
    return polite.outcomes, flood.outcomes


def show(name: str, outcomes: Outcomes, seconds: float) -> None:
    ttft, rejects = sorted(outcomes.ttft_s), sorted(outcomes.reject_s)
    refused = f"{len(rejects):6}"
    if rejects:
        late = sum(each > REJECTED_WITHIN_S for each in rejects)
        after = sorted(outcomes.retry_after_s)
        refused += f" in {1000 * percentile(rejects, 0.99):5.1f} ms p99, {late} later than 50 ms, last {rejects[-1]:.2f} s,"
        refused += f" Retry-After {after[0]} to {after[-1]} s"
    shown = (
        f"p50 {percentile(ttft, 0.5):5.2f} p99 {percentile(ttft, 0.99):5.2f} s" if ttft else "none accepted"
    )
    print(f"  {name:7} sent {outcomes.sent / seconds:6.1f}/s, completed {outcomes.completed / seconds:6.1f}/s,"
          f" first token {shown}; statuses {outcomes.statuses}, broken {outcomes.broken}; rejected {refused}")  # fmt: skip


def verdicts(polite: Outcomes, flood: Outcomes, goodput: float) -> dict[str, bool]:
    statuses = set(polite.statuses) | set(flood.statuses)
    rejects = polite.reject_s + flood.reject_s
    return {
        "goodput >= 90 % of capacity": goodput >= 0.9,
        "every reject a 429": statuses <= {200, 429} and not polite.broken and not flood.broken,
        "within 50 ms (99.9 %)": percentile(sorted(rejects), 0.999) <= REJECTED_WITHIN_S if rejects else True,
        "p99 of accepted first tokens <= queue's time": percentile(sorted(flood.ttft_s), 0.99)
        <= QUEUE_S + 0.5,
        "polite tenant undisturbed": polite.statuses.get(200, 0) >= 0.99 * polite.sent,
    }


async def run(seconds: float, factors: list[float]) -> bool:
    well = True
    with tempfile.TemporaryDirectory() as folder:
        ours = replace(OURS, command=(*OURS.command, "--api-keys-file", keys_file(folder)))
        with Fleet(ours) as fleet:
            rates = [await capacity(fleet, 15.0)]
            for times in factors:
                used = fleet.cpu_seconds()
                polite, flood = await overload(fleet, rates[-1], times, seconds)
                used = (fleet.cpu_seconds() - used) / (seconds + 2 * QUEUE_S)
                rates.append(await capacity(fleet, 15.0))
                mean = (rates[-2] + rates[-1]) / 2
                goodput = (polite.completed + flood.completed) / seconds / mean
                print(f"{times:g}x for {seconds:g} s: capacity {rates[-2]:.1f} before, {rates[-1]:.1f} after;"
                      f" goodput {100 * goodput:.1f} %; router {100 * used:.0f} % of a core")  # fmt: skip
                show("polite", polite, seconds)
                show("flood", flood, seconds)
                print(f"  refused by the router so far, by reason: {refusals(fleet.ports[0])}")
                for what, holds in verdicts(polite, flood, goodput).items():
                    print(f"  {'ok ' if holds else 'NOT'} {what}", flush=True)
                    well &= holds
            rss_kib = [rss(process.pid) for process in fleet.routers]
            print(
                f"router's memory {max(rss_kib) / 1024:.0f} MiB; engines used {cpu_seconds(fleet.engines.pid):.0f} s"
            )
    return well


def refusals(port: int) -> dict[str, int]:
    """By reason; `late` ones were let in and refused after all."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        found = re.findall(rb'queue_refusals_total\{reason="(\w+)"\} (\d+)', reply.read())
    return {reason.decode(): int(count) for reason, count in found}


def rss(pid: int) -> int:
    """Resident memory in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="of each overload")
    parser.add_argument("--times", default="2,5", help="how many times the capacity is asked")
    flags = parser.parse_args()
    compile_ours()
    os.sched_setaffinity(0, {LOAD_CORE})
    raise SystemExit(not uvloop.run(run(flags.seconds, [float(each) for each in flags.times.split(",")])))


if __name__ == "__main__":
    main()
