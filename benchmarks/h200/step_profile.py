"""Where the time of a step goes: kernels by torch's profiler, host work by cProfile, each over a few steps.

Steps are first timed with neither, since both slow what they watch. The host's shares count, not its microseconds.
"""

from __future__ import annotations

import cProfile
import pstats
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from cases import Bench
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # public, but torch re-exports it unmarked
from torch.profiler import ProfilerActivity, profile

SETTLING_STEPS = 4
TOP_KERNELS = 14
TOP_CALLS = 6
TOP_FUNCTIONS = 10
GROUPS = {
    "schedule": "scheduler draft queues tables blocks free_list request admission throughput containment plan",
    "build": "batch graph_input staging upload working_set sampling_batch sampling_rows token_history",
    "sample": "sampler cuda_sampler draws selection logprobs logit_edits noise choice_text",
    "commit": "engine messages prompt_scores",
    "launch": "runner cuda_runner step_graphs fused_decode fused_layer fused_space",
}
GROUP_OF = {stem: group for group, stems in GROUPS.items() for stem in stems.split()}
WAITS = re.compile(r"synchronize|'(tolist|item|cpu|nonzero)'|'wait'|wait_event")


def report(bench: Bench, batches: list[int], steps: int) -> str:
    """Decode steps of each batch size, then the prefill of workload E."""
    parts = [_decode(bench, batch, steps) for batch in batches]
    return "\n\n".join([*parts, _prefill(bench)])


def _decode(bench: Bench, batch: int, steps: int) -> str:
    _, prompt, _ = bench.scale.latency
    subject = bench.subject
    others = batch + 8 * SETTLING_STEPS  # tokens that the first request gains until the last has begun
    steps = min(steps, (bench.scale.max_model_len - prompt - others) // 3)
    for job in bench.jobs([(prompt, 3 * steps + others)] * batch):
        subject.add(job)
    begun: set[str] = set()
    while len(begun) < batch:
        begun.update(one.id for one in subject.advances(subject.step()))
    _repeat(subject.step, SETTLING_STEPS)
    wall_us = _timed_us(lambda: _repeat(subject.step, steps)) / steps
    kernels = _kernels(lambda: _repeat(subject.step, steps), steps, wall_us)
    host = _host(lambda: _repeat(subject.step, steps), steps)
    while subject.has_work:
        subject.step()
    return f"decode, batch {batch}: {wall_us:,.0f} us a step\n{kernels}\n{host}"


def _prefill(bench: Bench) -> str:
    count, prompt, new = bench.scale.prefill
    subject, count = bench.subject, min(count, 4)

    def run() -> None:
        for job in bench.jobs([(prompt, new)] * count):
            subject.add(job)
        while subject.has_work:
            subject.step()

    wall_us = _timed_us(run)
    kernels = _kernels(run, 1, wall_us)
    return f"prefill, {count} x {prompt} tokens: {wall_us:,.0f} us in all\n{kernels}\n{_host(run, 1)}"


def _repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def _timed_us(call: Callable[[], object]) -> float:
    _finish()
    started = time.perf_counter()
    call()
    _finish()
    return (time.perf_counter() - started) * 1e6


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _kernels(call: Callable[[], object], steps: int, wall_us: float) -> str:
    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as watched:
        call()
        _finish()
    return kernel_lines(watched.key_averages(), on_gpu, steps, wall_us)


def kernel_lines(events: Iterable[Any], on_gpu: bool, steps: int, wall_us: float) -> str:
    """The kernels that take most, and what the host's calls into CUDA take. `events` are a profiler's key averages."""
    rows = [(_us(event), event.count, event.key, event.device_type != DeviceType.CPU) for event in events]
    busy = sorted((row for row in rows if row[3] == on_gpu), reverse=True)
    total_us, launches = sum(row[0] for row in busy) / steps, sum(row[1] for row in busy) / steps
    lines = [
        f"  {'device' if on_gpu else 'operators'}: {total_us:,.0f} us busy a step "
        f"({total_us / wall_us:.0%} of it), {launches:,.0f} {'kernels' if on_gpu else 'calls'}"
    ]
    lines += [_row(us / steps, count / steps, key) for us, count, key, _ in busy[:TOP_KERNELS]]
    if on_gpu:
        calls = sorted((row for row in rows if not row[3]), reverse=True)
        lines.append("  calls into CUDA, host time:")
        lines += [_row(us / steps, count / steps, key) for us, count, key, _ in calls[:TOP_CALLS]]
    return "\n".join(lines)


def _us(event: Any) -> float:
    """A host event's device time is that of kernels which stand for themselves: it must not count twice."""
    on_host = event.device_type == DeviceType.CPU
    return float(event.self_cpu_time_total if on_host else event.self_device_time_total)


def _row(us: float, count: float, name: str) -> str:
    each = us / count if count else 0.0
    return f"    {us:10,.1f} us  {count:8,.1f} x {each:8,.1f} us  {name[:90]}"


def _host(call: Callable[[], object], steps: int) -> str:
    """The host's time by part of the engine; what builtins take belongs to their caller, waiting stands alone."""
    watcher = cProfile.Profile()
    watcher.enable()
    call()
    watcher.disable()
    found: Mapping[Any, Any] = pstats.Stats(watcher).stats  # type: ignore[attr-defined]
    by_group: dict[str, float] = defaultdict(float)
    by_function: list[tuple[float, float, str]] = []
    for (file, line, name), (_, calls, own_s, _, callers) in found.items():
        if file == "~" and not WAITS.search(name):
            for (caller_file, _, caller), row in callers.items():
                by_group[group_of(caller_file, caller)] += row[2]
        else:
            by_group[group_of(file, name)] += own_s
        place = name if file == "~" else f"{Path(file).name}:{line} {name}"
        by_function.append((own_s * 1e6, calls, place))
    total_s = sum(by_group.values())
    ranked = sorted(by_group.items(), key=lambda pair: -pair[1])
    shares = ", ".join(f"{name} {s / total_s:.0%}" for name, s in ranked if s >= 0.01 * total_s)
    lines = [f"  host under cProfile: {total_s / steps * 1e6:,.0f} us a step: {shares}"]
    lines += [
        _row(us / steps, n / steps, place) for us, n, place in sorted(by_function)[: -TOP_FUNCTIONS - 1 : -1]
    ]
    return "\n".join(lines)


def group_of(file: str, function: str) -> str:
    """The part of a step to which a Python function belongs, by its module's name."""
    if file == "~":
        return "wait" if WAITS.search(function) else "builtins"
    path = Path(file)
    if "shoal_engine" not in path.parts:
        return "launch" if {"torch", "triton"} & set(path.parts) else "measuring"
    if path.parent.name in ("models", "layers", "kernels", "quantization"):
        return "launch"
    return GROUP_OF.get(path.stem, path.stem)
