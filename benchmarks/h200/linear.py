"""Small-batch products on a GPU: microseconds and share of the limit, ours beside cuBLAS, in one run.

    python benchmarks/h200/linear.py [--rows 1 8 32] [--shapes 8b 0.6b] [--parts qkv o] [--fp8]
    python benchmarks/h200/linear.py --tune --write      # sweep all kernels, rewrite gemm_table.py (and $OUT's copy)

Every kernel is first checked against float64 on a fresh input. Times are of one card: the header names it. The limit is
the later of reading the weight at the bandwidth measured here and multiplying at TENSOR_FLOPS.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from graph_clock import copies_past_the_cache, read_bandwidth, us_per_call
from linear_candidates import LIBRARIES, SHAPES, candidates
from torch import Tensor

from shoal_engine.kernels import gemm_table, triton_linear
from shoal_engine.kernels.cublaslt import NoSuchAlgorithm
from shoal_engine.kernels.gemm_table import ROW_BUCKETS, GemmChoice, Method, choose
from shoal_engine.kernels.stream_plan import plan_stream
from shoal_engine.quantization import fp8

TENSOR_FLOPS = 789e12
WORST_ERROR = 5e-3
NOISE = 0.02
PARTS = ["qkv", "o", "gate-up", "down", "head"]
Timed = list[tuple[float, GemmChoice]]


def run(x: Tensor, weight: Tensor, scale: Tensor | None, choice: GemmChoice) -> Tensor:
    if choice in LIBRARIES:
        return triton_linear._by_library(x, weight, scale, choice.method)
    return triton_linear.launch(x, weight, scale, choice)


def compile_one(job: tuple[int, int, int, GemmChoice, bool]) -> None:
    """Into Triton's cache on disk, in a process of its own."""
    rows, n, k, choice, in_float8 = job
    x, weight = torch.zeros(rows, k, device="cuda").bfloat16(), torch.zeros(n, k, device="cuda").bfloat16()
    scale = None
    if in_float8:
        rounded = fp8.quantise_channels(weight)
        weight, scale = rounded.values, rounded.scale
    try:
        run(x, weight, scale, choice)
        torch.cuda.synchronize()
    except Exception as error:  # too much shared memory, say; the sweep leaves it out again
        print(f"cannot run {choice}: {type(error).__name__} {str(error)[:300]}", flush=True)


def compile_all(cases: Iterable[tuple[int, int, int, list[GemmChoice]]], in_float8: bool) -> None:
    """One job for each kernel that Triton compiles apart: sizes are arguments, but how many share a tile is not."""
    jobs: dict[tuple[object, ...], tuple[int, int, int, GemmChoice, bool]] = {}
    for rows, n, k, choices in cases:
        for one in choices:
            key: tuple[object, ...] = (one,)
            if one.method.streams:
                plan = plan_stream(rows, n, k, one, 132)
                key = (replace(one, split_k=plan.most_parts, skew=0),)
            elif one.method is Method.DOT:
                key = (one, triton_linear.padded_rows(rows), one.split_k > 1)
            elif one.method is not Method.GEMV:
                continue
            jobs.setdefault(key, (rows, n, k, one, in_float8))
    started = time.perf_counter()
    with ProcessPoolExecutor(
        min(14, os.cpu_count() or 1), mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        list(pool.map(compile_one, jobs.values()))
    print(f"{len(jobs)} kernels compiled in {time.perf_counter() - started:.0f} s", flush=True)


def measure(
    x: Tensor,
    weights: list[Tensor],
    scale: Tensor | None,
    choices: list[GemmChoice],
    want: Tensor,
) -> Timed:
    """Microseconds of every choice that computes the right thing twice alike, fastest first."""
    times = []
    for one in choices:
        try:
            first, again = (run(x, weights[0], scale, one) for _ in range(2))
            error = float((first.double() - want).norm() / want.norm())
            if not error <= WORST_ERROR or not torch.equal(first, again):
                print(f"WRONG {one} rows {x.shape[0]} {list(weights[0].shape)}: {error:.1e}", flush=True)
                continue
            times.append((us_per_call(partial(run, x, scale=scale, choice=one), weights), one))
        except NoSuchAlgorithm:
            continue
        except Exception as error:
            print(f"FAILS {one} rows {x.shape[0]}: {type(error).__name__} {str(error)[:100]}", flush=True)
            torch.cuda.synchronize()
    return sorted(times, key=lambda pair: pair[0])


def exact(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    wide = weight.float() if scale is None else weight.float() * scale[:, None]
    return x.double() @ wide.double().T if wide.numel() < 2**28 else (x.float() @ wide.T).double()


def worthwhile(found: Timed) -> GemmChoice:
    """The fastest, but cuBLAS as torch calls it where that is slower by no more than the noise."""
    plain = [us for us, one in found if one == LIBRARIES[0]]
    return LIBRARIES[0] if plain and plain[0] < found[0][0] * (1 + NOISE) else found[0][1]


def show(name: str, rows: int, weight: Tensor, bandwidth: float, found: Timed, tuned: int) -> None:
    """The fastest, the two libraries and, after a sweep, the next few."""
    size = weight.numel()
    limit = max(size * weight.element_size() / bandwidth, 2 * rows * size / TENSOR_FLOPS) * 1e6
    shown = found[:1] + [pair for pair in found[1:] if pair[1] in LIBRARIES] + found[1 : 1 + tuned]
    cells = []
    for us, one in shown:
        tile = f"{one.block_m or ''}x{one.block_n}x{one.block_k}/{one.split_k} {one.warps}w{one.stages}s+{one.skew}"
        place = f" {one.block_m}/{one.split_k}" if one.method is Method.PROPOSAL else ""
        cells.append(f"{us:.1f} {one.method.value}{place}" + (f" {tile}" if one.block_n else ""))
    print(
        f"{name:<13} M={rows:<4} limit {limit:6.1f} {limit / found[0][0]:4.0%} | " + " | ".join(cells),
        flush=True,
    )


def rewrite_table(tuned: dict[tuple[int, int], list[GemmChoice]], card: str) -> None:
    lines = [f"# Measured on one {card}, torch {torch.__version__}."]
    lines.append("_TABLE: dict[tuple[int, int], tuple[_Row, ...]] = {")
    for shape, row in tuned.items():
        lines.append(f"    {shape}: (")
        for one in row:
            numbers = one.block_n, one.block_k, one.split_k, one.warps, one.stages, one.block_m, one.skew
            lines.append(f"        (_{one.method.name}, {', '.join(map(str, numbers))}),")
        lines.append("    ),")
    lines.append("}")
    path, marks = Path(gemm_table.__file__), r"(# --- tuned ---\n).*?(\n# --- end ---)"
    text = "\n".join(lines)
    whole = re.sub(marks, lambda found: found[1] + text + found[2], path.read_text(), flags=re.DOTALL)
    path.write_text(whole)
    if "OUT" in os.environ:
        (Path(os.environ["OUT"]) / path.name).write_text(whole)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROW_BUCKETS))
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--parts", nargs="+", default=PARTS)
    parser.add_argument("--tune", type=int, nargs="?", const=3, default=0, help="sweep; show so many more")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--fp8", action="store_true", help="float8 weights, a scale per channel")
    options = parser.parse_args()
    if options.write and (options.rows, options.shapes, options.parts) != (
        list(ROW_BUCKETS),
        list(SHAPES),
        PARTS,
    ):
        parser.error("--write needs every row, shape and part")
    cases = [
        (model, part, *shape)
        for model in options.shapes
        for part, shape in SHAPES[model].items()
        if part in options.parts
    ]
    sweep(cases, options)


def choices_for(rows: int, n: int, k: int, tune: bool) -> list[GemmChoice]:
    found = candidates(rows, n, k) if tune else [choose(rows, n, k), *LIBRARIES]
    return list(dict.fromkeys(found))


def sweep(cases: list[tuple[str, str, int, int]], options: argparse.Namespace) -> None:
    started = time.perf_counter()
    if options.tune:
        compile_all(
            ((rows, n, k, choices_for(rows, n, k, True)) for _, _, n, k in cases for rows in options.rows),
            options.fp8,
        )
    card, bandwidth = torch.cuda.get_device_name(), read_bandwidth()
    print(f"{card}, torch {torch.__version__}, reads at {bandwidth / 1e12:.2f} TB/s", flush=True)
    tuned: dict[tuple[int, int], list[GemmChoice]] = {}
    for model, part, n, k in cases:
        weight, scale = torch.randn(n, k, device="cuda").bfloat16(), None
        if options.fp8:
            rounded = fp8.quantise_channels(weight)
            weight, scale = rounded.values, rounded.scale
        weights = copies_past_the_cache(weight)
        for rows in options.rows:
            x = (torch.randn(rows, k, device="cuda") * k**-0.5).bfloat16()
            want = exact(x, weight, scale)
            choices = [
                one
                for one in choices_for(rows, n, k, options.tune > 0)
                if not (options.fp8 and (one.method.streams or one.method is Method.PROPOSAL))
            ]
            found = measure(x, weights, scale, choices, want)
            tuned.setdefault((n, k), []).append(worthwhile(found))
            show(f"{model} {part}", rows, weight, bandwidth, found, options.tune)
        del weights, weight, want
    print(f"{time.perf_counter() - started:.0f} s in all")
    if options.write:
        rewrite_table(tuned, card)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
