"""Does the engine know what its steps cost, and what does --target-step-s buy? One process, random weights.

    python benchmarks/h200/step_cost.py [--model 8b | --cpu-tiny] [--targets 0 0.03] [--seconds 20] [--rate 8]

Requests with long prompts arrive at random beside streams that decode. For each target (0: none): how far the
predicted step times are off, the gaps between tokens, and the times to the first token, as a user has them.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from shapes import SHAPES
from subjects import Shoal
from timeline import Job

from shoal_engine.messages import StepCost
from shoal_engine.step_cost import StepCostFit


class Watched(StepCostFit):
    """The engine's own fit, which also notes what it would have said of each step before it learnt from it."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, list[float]] = {"decode": [], "prompts": []}

    def observe(self, prefill_tokens: int, num_decodes: int, seconds: float) -> None:
        if self.cost is not None and seconds > 0.0:
            expected_s = seconds_of(self.cost, prefill_tokens, num_decodes)
            self.errors["prompts" if prefill_tokens else "decode"].append(abs(expected_s - seconds) / seconds)
        super().observe(prefill_tokens, num_decodes, seconds)


def seconds_of(cost: StepCost, prefill_tokens: int, num_decodes: int) -> float:
    return cost.base_s + cost.prefill_token_s * prefill_tokens + cost.sequence_s * num_decodes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, default="8b")
    parser.add_argument("--cpu-tiny", action="store_true", help="a tiny model on the CPU: proves the script")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.0, 0.03])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=8.0, help="requests per second")
    parser.add_argument("--prompt", type=int, nargs=2, default=[500, 8000], help="tokens, from and to")
    args = parser.parse_args()
    shape = SHAPES["tiny" if args.cpu_tiny else args.model]
    options: dict[str, Any] = {
        "device": "cpu" if args.cpu_tiny else "cuda",
        "max_model_len": args.prompt[1] + 300,
    }
    with tempfile.TemporaryDirectory() as folder:
        subject = Shoal(shape.write(Path(folder)), options)
        subject.prepare()
        for target_s in args.targets:
            run(subject, target_s, args, shape.vocab)


class Load:
    """Requests that arrive at random, and when their tokens came. All times in seconds since the start."""

    def __init__(self, args: argparse.Namespace, vocab: int, name: str) -> None:
        rng, at_s = random.Random(7), 0.0
        self.jobs: list[tuple[float, Job]] = []
        while (at_s := at_s + rng.expovariate(args.rate)) < args.seconds:
            prompt = [rng.randrange(3, vocab) for _ in range(rng.randint(*args.prompt))]
            self.jobs.append((at_s, Job(f"{name}-{len(self.jobs)}", prompt, rng.randint(50, 250))))
        self.firsts: list[float] = []
        self.gaps: list[float] = []
        self._last_s: dict[str, float] = {}
        self._arrived_s: dict[str, float] = {}

    def play(self, subject: Shoal) -> None:
        waiting, started_s = deque(self.jobs), time.perf_counter()
        while subject.has_work or waiting:
            now_s = time.perf_counter() - started_s
            while waiting and waiting[0][0] <= now_s:
                arrived_s, job = waiting.popleft()
                self._arrived_s[job.id] = arrived_s
                subject.add(job)
            if not subject.has_work:
                time.sleep(0.001)
                continue
            outputs = subject.step()
            now_s = time.perf_counter() - started_s
            for advance in subject.advances(outputs):
                self._note(advance.id, now_s)

    def _note(self, name: str, now_s: float) -> None:
        if name in self._last_s:
            self.gaps.append(now_s - self._last_s[name])
        else:
            self.firsts.append(now_s - self._arrived_s[name])
        self._last_s[name] = now_s


def run(subject: Shoal, target_s: float, args: argparse.Namespace, vocab: int) -> None:
    scheduler = subject.engine.scheduler
    scheduler.limits = replace(scheduler.limits, target_step_s=target_s or None)
    fit = scheduler._times.step_cost = Watched()
    load = Load(args, vocab, str(target_s))
    load.play(subject)
    print(f"target {target_s or 'none'}: {len(load.jobs)} requests; {fit.cost}")
    for kind, errors in fit.errors.items():
        print(f"  steps with {kind}: {len(errors)}, predicted time off by {percents(errors)}")
    print(f"  gaps between tokens: {milliseconds(load.gaps)}; first token: {milliseconds(load.firsts)}")


def at(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))] if values else float("nan")


def percents(errors: list[float]) -> str:
    return ", ".join(f"p{share:.0f} {100 * at(errors, share / 100):.1f} %" for share in (50.0, 90.0))


def milliseconds(values: list[float]) -> str:
    return ", ".join(f"p{share:.0f} {1000 * at(values, share / 100):.1f} ms" for share in (50.0, 90.0, 99.0))


if __name__ == "__main__":
    main()
