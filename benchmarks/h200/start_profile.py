"""Where a start goes: imports, phases, kernels that had to be compiled, and Python's functions. Starts Shoal only.

    python benchmarks/h200/start_profile.py --model 0.6b            # a cold start, then one with the kernels it left

Each start is a process of its own. The times of a profiled start are longer than those of `workloads.py --workloads start`.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from processes import compile_imports
from shapes import SHAPES

TOP = 22
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \| (\s*)(\S+)")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=["0.6b", "8b"], default="0.6b")
    parser.add_argument("--profile", action="store_true", help="also by function: the warm start once more")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=JSON", help="of LLM(...)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        return child(args)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        SHAPES[args.model].write(folder / "model")
        os.environ["TRITON_CACHE_DIR"] = str(folder / "kernels")
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
        compile_imports({})
        command = [sys.executable, "-X", "importtime", __file__, *argv, "--child", str(folder / "model")]
        for kind in ("cold", "warm") + ("profiled",) * args.profile:
            started = time.perf_counter()
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "START_KIND": kind}, check=False
            )
            print(
                f"== {kind}: {time.perf_counter() - started:.2f} s from command line to exit, rc {done.returncode}"
            )
            print(done.stdout if done.returncode == 0 else done.stdout + done.stderr[-3000:])
            print(imports(done.stderr), flush=True)
    return 0


def imports(log: str) -> str:
    """The outermost and the dearest imports, in ms."""
    rows = [(int(m[2]), int(m[1]), len(m[3]) // 2, m[4]) for m in _IMPORT.finditer(log)]
    outer = sorted((row for row in rows if row[2] <= 1), reverse=True)[:12]
    own = sorted(rows, key=lambda row: -row[1])[:12]
    lines = [f"  imports: {sum(row[1] for row in rows) / 1e3:,.0f} ms in {len(rows)} modules"]
    lines += [f"    {cumulative / 1e3:8,.0f} ms with all below  {name}" for cumulative, _, _, name in outer]
    lines += [f"    {self_us / 1e3:8,.0f} ms own              {name}" for _, self_us, _, name in own]
    return "\n".join(lines)


def child(args: argparse.Namespace) -> int:
    begun = time.perf_counter()
    from shoal_engine import LLM, SamplingParams

    imported = time.perf_counter()
    options: dict[str, Any] = {"max_model_len": 8257, "device": "cuda"}
    options |= {name: json.loads(value) for name, _, value in (one.partition("=") for one in args.option)}
    compiled = watch_compiles()
    profiler = cProfile.Profile()
    if os.environ["START_KIND"] == "profiled":
        profiler.enable()
    llm = LLM(str(args.child), load_format="dummy", **options)
    loaded = time.perf_counter()
    params = SamplingParams(max_tokens=1, ignore_eos=True, detokenize=False)
    llm.generate({"prompt_token_ids": list(range(100, 108))}, params)
    answered = time.perf_counter()
    profiler.disable()
    print(
        f"  import {imported - begun:.2f} s, load {loaded - imported:.2f}, first token {answered - loaded:.3f}"
    )
    print("  phases: " + ", ".join(f"{k} {v:.2f}" for k, v in llm.engine.ready.load_seconds.items()))
    hits = [row for row in compiled if row[2]]
    made = sorted((row for row in compiled if not row[2]), key=lambda row: -row[1])
    print(
        f"  kernels: {len(made)} compiled in {sum(row[1] for row in made):.2f} s,"
        f" {len(hits)} from the cache in {sum(row[1] for row in hits):.2f} s"
    )
    for name, seconds, _ in made[:TOP]:
        print(f"    {seconds:6.2f} s  {name}")
    if os.environ["START_KIND"] == "profiled":
        for order in ("tottime", "cumtime"):
            pstats.Stats(profiler).sort_stats(order).print_stats(45)
    return 0


def watch_compiles() -> list[tuple[str, float, bool]]:
    """(kernel, seconds, whether the cache had it), filled as Triton tells of it."""
    from triton import knobs

    found: list[tuple[str, float, bool]] = []

    def listen(*, src: Any, metadata: Any, metadata_group: Any, times: Any, cache_hit: bool) -> None:
        found.append((src.name, times.total / 1e6, cache_hit))

    knobs.compilation.listener = listen
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
