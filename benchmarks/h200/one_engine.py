"""What one process measures: it loads one engine and runs the workloads it was told. Compares nothing."""

from __future__ import annotations

import argparse
import gc
import json
import time
from typing import Any

from cases import CASES, FULL, TINY, Bench, warm_up
from figures import append
from roofline import Ceilings, Cost
from shapes import SHAPES, Shape
from subjects import open_subject

READY = "ready "  # the last line of a process that only starts, before its load times
START_PROMPT_TOKENS = 8


def shape_of(args: argparse.Namespace) -> Shape:
    return SHAPES["tiny" if args.cpu_tiny else args.model]


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Of `LLM(...)`; what was not asked for is left to the engine."""
    scale = TINY if args.cpu_tiny else FULL
    options: dict[str, Any] = {
        "device": "cpu" if args.cpu_tiny else "cuda",
        "max_model_len": scale.max_model_len,
        "quantization": args.quantization,
        "kv_cache_dtype": args.kv_cache_dtype,
        "max_num_batched_tokens": args.max_num_batched_tokens,
        "max_num_seqs": args.max_num_seqs,
        **{name: json.loads(value) for name, _, value in (one.partition("=") for one in args.option)},
    }
    return {name: value for name, value in options.items() if value is not None}


def run(args: argparse.Namespace) -> None:
    """Load, then every workload of `args`; figures and the names of begun workloads go to files in args.folder."""
    chip = None if args.cpu_tiny else _ceilings(args)
    subject = open_subject(args.child, args.folder / "model", engine_options(args))
    cost = Cost(shape_of(args), 1 if args.quantization else 2, 1 if args.kv_cache_dtype else 2)
    bench = Bench(subject, args.child, cost, chip, TINY if args.cpu_tiny else FULL)
    if args.workloads == "start":
        _start(bench)
        return
    print(f"{args.child}: every kind of step for the first time: {warm_up(bench):.1f} s", flush=True)
    gc.collect()
    gc.freeze()  # as the engine's own process does once it has loaded
    for name in args.workloads.split(","):
        with (args.folder / "begun").open("a") as file:
            print(name, file=file)
        started = time.perf_counter()
        if name == "profile":
            _profile(args, bench)
        else:
            for figure in CASES[name](bench):
                append(args.folder / f"{args.child}.jsonl", figure)
        print(f"{args.child}: {name} took {time.perf_counter() - started:.1f} s", flush=True)


def _ceilings(args: argparse.Namespace) -> Ceilings:
    if not args.measure_ceilings:
        return Ceilings()
    import ceilings

    chip = ceilings.measure()
    print(f"this card: {chip}", flush=True)
    return chip


def _start(bench: Bench) -> None:
    """One token, as the proof; the parent's clock runs until this process has printed it."""
    for job in bench.jobs([(START_PROMPT_TOKENS, 1)]):
        bench.subject.add(job)
    while bench.subject.has_work:
        bench.subject.step()
    print(READY + json.dumps(bench.subject.load_seconds), flush=True)


def _profile(args: argparse.Namespace, bench: Bench) -> None:
    import step_profile

    most = max(bench.scale.batches)
    batches = sorted({min(batch, most) for batch in args.profile_batches})
    print(step_profile.report(bench, batches, args.profile_steps), flush=True)
