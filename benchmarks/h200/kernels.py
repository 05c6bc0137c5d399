"""The attention side's Triton kernels on one H200: right first, then microseconds and the share of what the card can do.

    PYTHONPATH=engine python3 benchmarks/h200/kernels.py            100 s: odd shapes are checked, then all is timed
    PYTHONPATH=engine python3 benchmarks/h200/kernels.py --quick    30 s: the lines that matter, each with its error
    options: --only decode (part of a group's name), --variants (every tiling), --skip-checks, --block-tokens 64

Kernels are compiled by as many processes as there are groups, which the checks share; then one process times. A figure
is the median of replays of a CUDA graph of calls that take turns on inputs beyond the L2 cache. Limits stand in
kernel_timings.py. "err" is the relative L2 error to the torch twin in float32: more than 4e-3 is WRONG.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence

import kernel_checks
import torch
from graph_clock import us_per_call
from kernel_timings import Timing, timings, variants

TOLERANCE = 4e-3
CHECKS_UNTIL_S = 70.0  # what does not end by then is stopped and told


def compile_groups(lines: Sequence[Timing], groups: str) -> None:
    """Run each line of some groups once, so that the compiler's cache on disk has their kernels."""
    for line in lines:
        if line.group in groups.split(","):
            line.prepare().calls[0]()
    torch.cuda.synchronize()


def bundles(lines: Sequence[Timing]) -> list[str]:
    """Groups for one process each, joined by commas: attention takes long to compile, the rest goes together."""
    groups = list({line.group: None for line in lines})
    heavy = [group for group in groups if group.startswith(("decode", "prefill"))]
    light = [group for group in groups if group not in heavy]
    return [*heavy, *(",".join(half) for half in (light[::2], light[1::2]) if half)]


def run_side_by_side(commands: dict[str, list[str]], until_s: float) -> int:
    """Each name's command in a process of its own; prints what they say. Returns how many failed or were stopped."""
    began, failures = time.monotonic(), 0
    running = {
        name: subprocess.Popen(
            [sys.executable, __file__, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for name, command in commands.items()
    }
    for name, process in running.items():
        try:
            said, _ = process.communicate(timeout=max(0.1, until_s - (time.monotonic() - began)))
        except subprocess.TimeoutExpired:
            process.kill()
            said = process.communicate()[0] + "\nstopped: out of time"
        if process.returncode:
            failures += 1
            print(f"{name}: failed\n{said[-1500:].rstrip()}", flush=True)
        elif said.strip():
            print(f"{name}: {said.strip()}", flush=True)
    return failures


def measure(line: Timing) -> bool:
    """Print one line; False when it is wrong or fails."""
    label = f"{line.group:22} {line.case:18}"
    try:
        prepared = line.prepare()
        error = prepared.error()
        us = us_per_call(lambda call: call(), prepared.calls)
    except Exception:
        print(f"{label} FAILED {traceback.format_exc(limit=-2)[-600:]}", flush=True)
        return False
    right = error <= TOLERANCE
    print(
        f"{label} {us:9.2f} us {prepared.limit_us / us:5.0%}  err {error:.1e}{'' if right else ' WRONG'}",
        flush=True,
    )
    return right


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--skip-checks", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--block-tokens", type=int, default=16)
    parser.add_argument("--seconds", type=float, help="after which no further line is begun")
    parser.add_argument("--compile", metavar="GROUP", help=argparse.SUPPRESS)
    parser.add_argument("--check", metavar="GROUP", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.check:
        sys.exit(kernel_checks.run(options.check))
    lines = list(
        variants(options.block_tokens) if options.variants else timings(options.quick, options.block_tokens)
    )
    lines = [line for line in lines if options.only in line.group]
    if options.compile:
        return compile_groups(lines, options.compile)

    began, passed = time.monotonic(), sys.argv[1:]
    covering = passed if options.variants or options.quick else [*passed, "--quick"]
    jobs = {f"compile {groups}": [*covering, "--compile", groups] for groups in bundles(lines)}
    if not options.quick and not options.skip_checks:
        jobs |= {f"check {group}": ["--check", group] for group in kernel_checks.GROUPS}
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    failures = run_side_by_side(jobs, CHECKS_UNTIL_S)
    print(f"compiled and checked in {time.monotonic() - began:.0f} s", flush=True)
    budget_s = options.seconds or (30.0 if options.quick else 100.0)
    for number, line in enumerate(lines):
        if time.monotonic() - began > budget_s:
            print(f"out of time: {len(lines) - number} lines not measured")
            break
        failures += not measure(line)
    print(f"done in {time.monotonic() - began:.0f} s, {failures} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
