"""Workloads A to E, time to first token and the offline case, each from requests to figures. Knows no engine by name."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from figures import Figure
from roofline import Ceilings, Cost, output_rate
from timeline import Job, Subject, Timeline, drive, steady_steps

WARM_UP_TOKENS = 64


@dataclass(frozen=True)
class Scale:
    """Sizes of every workload; (requests, prompt tokens, new tokens) where three numbers stand together."""

    mixed: tuple[int, int, int] = (256, 100, 1024)  # A: requests, least and most tokens of prompt and answer
    even: tuple[int, int, int] = (512, 1024, 256)  # B
    batches: tuple[int, ...] = (1, 8, 32, 128, 256)  # C
    latency: tuple[int, int, int] = (2, 512, 128)  # C: runs, prompt and new tokens: mean context 577
    shared: tuple[int, int, int] = (512, 128, 128)  # D: requests, own and new tokens
    prefix: int = 2048  # D
    prefill: tuple[int, int, int] = (16, 8192, 1)  # E
    first: tuple[int, int, int] = (9, 512, 1)  # time to first token: runs, prompt and new tokens
    offline: tuple[int, int, int] = (1000, 1024, 512)

    @property
    def max_model_len(self) -> int:
        """Room for the longest request, and for what `warm_up` adds to it."""
        own, new = self.shared[1:]
        pairs = (self.even, self.latency, self.prefill, self.first, self.offline)
        longest = max(2 * self.mixed[2], self.prefix + own + new, *(prompt + out for _, prompt, out in pairs))
        return longest + WARM_UP_TOKENS


FULL = Scale()
TINY = Scale(
    mixed=(6, 3, 9),
    even=(5, 12, 6),
    batches=(1, 3),
    latency=(2, 16, 10),
    shared=(4, 8, 4),
    prefix=32,
    prefill=(2, 64, 1),
    first=(3, 16, 1),
    offline=(4, 10, 5),
)


@dataclass
class Bench:
    """One engine with one model; `chip` None leaves floors out."""

    subject: Subject
    engine: str
    cost: Cost
    chip: Ceilings | None
    scale: Scale
    rng: random.Random = field(default_factory=lambda: random.Random(20261123))
    requests: int = 0

    def tokens(self, count: int) -> list[int]:
        """Random ids, past the special ones that begin a vocabulary: no two prompts share a block by chance."""
        return self.rng.choices(range(min(100, self.cost.shape.vocab // 2), self.cost.shape.vocab), k=count)

    def jobs(self, sizes: list[tuple[int, int]], prefix: int = 0) -> list[Job]:
        """(prompt, new tokens) -> requests; with `prefix`, that many first tokens are common to all."""
        head = self.tokens(prefix)
        self.requests += len(sizes)
        first = self.requests - len(sizes)
        return [
            Job(f"bench-{first + i}", head + self.tokens(prompt - prefix), new)
            for i, (prompt, new) in enumerate(sizes)
        ]

    def figure(self, name: str, unit: str, value: float, floor: float | None, run: Timeline) -> Figure:
        details: dict[str, float | str] = {
            "requests": len(run.jobs),
            "whole_s": run.whole_s,
            "steps": len(run.steps),
            "cached_tokens": run.cached_tokens,
        }
        fp8 = self.cost.weight_bytes == 1
        return Figure(self.engine, self.cost.shape.name, fp8, name, unit, value, floor, details)

    def output_tokens(self, name: str, sizes: list[tuple[int, int]], prefix: int = 0) -> Figure:
        """Output tokens per second of all requests sent at once."""
        run = drive(self.subject, self.jobs(sizes, prefix))
        floor = None if self.chip is None else output_rate(self.cost, self.chip, sizes, prefix)
        return self.figure(name, "tok/s", run.new_tokens / run.whole_s, floor, run)


def warm_up(bench: Bench) -> float:
    """Every kind of step once, so that nothing is compiled or recorded while a workload runs. Returns its seconds.

    One prompt alone, long ones, then as many as ever run at once, which end one after another: decodes of every size.
    """
    bench.subject.prepare()
    scale = bench.scale
    count = max(size[0] for size in (scale.mixed, scale.even, scale.shared, scale.offline))
    alone = [(scale.first[1], WARM_UP_TOKENS)]
    long = [(scale.prefill[1], WARM_UP_TOKENS)] * 2 + [(scale.even[1], WARM_UP_TOKENS)] * 4
    crowd = [(scale.mixed[1], 2 + i * (WARM_UP_TOKENS - 2) // count) for i in range(count)]
    return sum(drive(bench.subject, bench.jobs(sizes)).whole_s for sizes in (alone, long, crowd))


def mixed(bench: Bench) -> Iterator[Figure]:
    count, low, high = bench.scale.mixed
    rng = random.Random(0)  # the same lengths in every run
    yield bench.output_tokens("A", [(rng.randint(low, high), rng.randint(low, high)) for _ in range(count)])


def even(bench: Bench) -> Iterator[Figure]:
    count, prompt, new = bench.scale.even
    yield bench.output_tokens("B", [(prompt, new)] * count)


def latency(bench: Bench) -> Iterator[Figure]:
    """Milliseconds between two tokens: the median of the steps in which all requests decode and nothing else runs."""
    runs, prompt, new = bench.scale.latency
    for batch in bench.scale.batches:
        taken = [drive(bench.subject, bench.jobs([(prompt, new)] * batch)) for _ in range(runs)]
        steps = [step for run in taken for step in steady_steps(run)]
        if not steps:
            raise RuntimeError(f"no step of batch {batch} decoded all requests and nothing else")
        context = statistics.fmean(step.context for step in steps)
        floor = None
        if bench.chip is not None:
            floor = bench.cost.decode_s(bench.chip, bench.chip.read, batch, context) * 1e3
        value = statistics.median(step.seconds for step in steps) * 1e3
        figure = bench.figure(f"C batch {batch}", "ms", value, floor, taken[-1])
        spread = statistics.quantiles((step.seconds * 1e3 for step in steps), n=10)
        figure.details.update(steady_steps=len(steps), context=context, p10=spread[0], p90=spread[-1])
        yield figure


def shared(bench: Bench) -> Iterator[Figure]:
    count, own, new = bench.scale.shared
    prefix = bench.scale.prefix
    yield bench.output_tokens("D", [(prefix + own, new)] * count, prefix)


def prefill(bench: Bench) -> Iterator[Figure]:
    """Prompt tokens per second."""
    count, prompt, new = bench.scale.prefill
    run = drive(bench.subject, bench.jobs([(prompt, new)] * count))
    floor = None if bench.chip is None else prompt / bench.cost.prefill_s(bench.chip, prompt)
    yield bench.figure("E", "tok/s", count * prompt / run.whole_s, floor, run)


def first_token(bench: Bench) -> Iterator[Figure]:
    """Milliseconds from adding one request to its first token."""
    count, prompt, new = bench.scale.first
    runs = [drive(bench.subject, bench.jobs([(prompt, new)])) for _ in range(count)]
    floor = None
    if bench.chip is not None:  # multiplied, or read once, whichever takes longer
        reading_s = bench.cost.step_bytes / bench.chip.read
        floor = max(bench.cost.prefill_s(bench.chip, prompt), reading_s) * 1e3
    value = statistics.median(run.first_token_s for run in runs) * 1e3
    yield bench.figure("ttft", "ms", value, floor, runs[-1])


def offline(bench: Bench) -> Iterator[Figure]:
    count, prompt, new = bench.scale.offline
    yield bench.output_tokens("offline", [(prompt, new)] * count)


CASES: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "ttft": first_token,
    "C": latency,
    "A": mixed,
    "B": even,
    "D": shared,
    "E": prefill,
    "offline": offline,
}
