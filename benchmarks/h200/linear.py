"""Small-batch products on a GPU: microseconds and share of the read bandwidth, ours beside cuBLAS, in one run.

    python benchmarks/h200/linear.py [--rows 1 8 32] [--shapes 8b 0.6b] [--fp8]
    python benchmarks/h200/linear.py --tune --write      # sweep all kernels, rewrite gemm_table.py

Every kernel is first checked against float64 on a fresh input. Times are of one card: the header names it.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from graph_clock import copies_past_the_cache, read_bandwidth, us_per_call
from torch import Tensor

from shoal_engine.kernels import gemm_table, triton_linear
from shoal_engine.kernels.gemm_table import ROW_BUCKETS, GemmChoice, Method, choose

SHAPES = {
    "8b": {"qkv": (6144, 4096), "o": (4096, 4096), "gate-up": (28672, 4096), "down": (4096, 14336),
           "head": (128256, 4096)},
    "0.6b": {"qkv": (4096, 1024), "o": (1024, 2048), "gate-up": (6144, 1024), "down": (1024, 3072),
             "head": (151936, 1024)},
}  # fmt: skip
GEMVS = [
    GemmChoice(Method.GEMV, n, k, 1, warps, stages)
    for (n, k, warps), stages in itertools.product(
        [(1, 1024, 2), (1, 2048, 4), (2, 1024, 2), (2, 1024, 4), (2, 2048, 4), (4, 1024, 2), (4, 1024, 4),
         (4, 2048, 8), (4, 4096, 8), (8, 1024, 8), (8, 512, 4)],
        (1, 3),
    )
]  # fmt: skip
DOTS = [
    GemmChoice(Method.DOT, n, k, split, 4, stages)
    for (n, k, stages), split in itertools.product(
        [(64, 128, 3), (64, 128, 4), (64, 128, 6), (64, 256, 3), (64, 64, 6), (128, 128, 3), (128, 64, 4)],
        (1, 2, 4, 8),
    )
]
LIBRARIES = [GemmChoice(Method.CUBLAS), GemmChoice(Method.CUBLASLT)]
WORST_ERROR = 5e-3
NOISE = 0.02


def run(x: Tensor, weight: Tensor, scale: Tensor | None, choice: GemmChoice) -> Tensor:
    if choice.method in (Method.GEMV, Method.DOT):
        return triton_linear.launch(x, weight, scale, choice)
    return triton_linear._by_library(x, weight, scale, choice.method)


def candidates(rows: int, n: int, k: int) -> list[GemmChoice]:
    """What may be fastest; the rest was seen to lose (kernels.md 5.3)."""
    fits = [one for one in GEMVS if rows == 1 and one.block_k <= k]
    if rows <= gemm_table.MAX_ROWS and rows > 1:
        most = 8 if n <= 4096 else 2 if n <= 8192 else 1
        fits += [
            one
            for one in DOTS
            if one.split_k <= most
            and k // one.block_k >= 2 * one.split_k
            and (rows > 32 or one.block_n == 64)
        ]
    return fits + LIBRARIES


def compile_one(job: tuple[int, GemmChoice, bool]) -> None:
    """Into Triton's cache on disk, in a process of its own; shapes are arguments, so small ones serve for all."""
    rows, choice, fp8 = job
    n, k = max(choice.block_n, 64), 2 * max(choice.block_k * choice.split_k, 512)
    x, weight = torch.randn(rows, k, device="cuda").bfloat16(), torch.randn(n, k, device="cuda").bfloat16()
    both = triton_linear.quantise_channels(weight) if fp8 else (weight, None)
    try:
        triton_linear.launch(x, *both, choice)
    except Exception as error:  # too much shared memory, say; the sweep leaves it out again
        print(f"cannot run {choice}: {type(error).__name__}")


def compile_all(rows: list[int], fp8: bool) -> None:
    jobs = [(1, one, fp8) for one in GEMVS if 1 in rows]
    jobs += [
        (m, one, fp8)
        for m in rows
        if 1 < m <= gemm_table.MAX_ROWS
        for one in DOTS
        if one.split_k in (1, 2) and (m > 32 or one.block_n == 64)
    ]
    workers = min(12, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_one, jobs, chunksize=4))


def check(x: Tensor, weight: Tensor, scale: Tensor | None, choice: GemmChoice, want: Tensor) -> bool:
    try:
        got = run(x, weight, scale, choice).double()
    except Exception:
        return False
    error = float((got - want).norm() / want.norm())
    if not error <= WORST_ERROR:
        print(f"WRONG {choice} rows {x.shape[0]} {list(weight.shape)}: {error:.1e}")
    return error <= WORST_ERROR


def measure(
    rows: int, weights: list[Tensor], scale: Tensor | None, choices: list[GemmChoice]
) -> list[tuple[float, GemmChoice]]:
    """Microseconds of every choice that computes the right thing, fastest first."""
    x = torch.randn(rows, weights[0].shape[1], device="cuda").bfloat16()
    exact = weights[0].float() if scale is None else weights[0].float() * scale[:, None]
    want = x.double() @ exact.double().T if exact.numel() < 2**28 else (x.float() @ exact.T).double()
    right = [one for one in choices if check(x, weights[0], scale, one, want)]
    del exact, want
    times = [(us_per_call(lambda weight, one=one: run(x, weight, scale, one), weights), one) for one in right]
    return sorted(times, key=lambda pair: pair[0])


def worthwhile(found: list[tuple[float, GemmChoice]]) -> GemmChoice:
    """The fastest, but cuBLAS as torch calls it where that is slower by no more than the noise."""
    plain = [us for us, one in found if one == LIBRARIES[0]]
    return LIBRARIES[0] if plain and plain[0] < found[0][0] * (1 + NOISE) else found[0][1]


def line(name: str, rows: int, weight: Tensor, us: float, bandwidth: float, choice: GemmChoice) -> str:
    share = weight.numel() * weight.element_size() / us * 1e6 / bandwidth
    tile = f"{choice.block_n}x{choice.block_k} split {choice.split_k} {choice.warps}w {choice.stages}s"
    shown = choice.method.value + (f" {tile}" if choice.block_n else "")
    return f"{name:<13} M={rows:<4} {us:8.1f} us {share:6.0%}  {shown}"


def rewrite_table(tuned: dict[tuple[int, int], list[GemmChoice]], card: str) -> str:
    lines = [f"# Measured on one {card}, torch {torch.__version__}."]
    lines.append("_TABLE: dict[tuple[int, int], tuple[_Row, ...]] = {")
    for shape, row in tuned.items():
        lines.append(f"    {shape}: (")
        for one in row:
            numbers = f"{one.block_n}, {one.block_k}, {one.split_k}, {one.warps}, {one.stages}"
            lines.append(f"        (_{one.method.name}, {numbers}),")
        lines.append("    ),")
    text = "\n".join([*lines, "}"])
    path = Path(gemm_table.__file__)
    path.write_text(
        re.sub(
            r"(# --- tuned ---\n).*?(\n# --- end ---)",
            lambda found: found[1] + text + found[2],
            path.read_text(),
            flags=re.DOTALL,
        )
    )
    return path.read_text()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROW_BUCKETS))
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--fp8", action="store_true", help="float8 weights, a scale per channel")
    options = parser.parse_args()
    if options.tune:
        compile_all(options.rows, options.fp8)
    card, bandwidth = torch.cuda.get_device_name(), read_bandwidth()
    print(
        f"{card}, torch {torch.__version__}, reads at {bandwidth / 1e12:.2f} TB/s; share of that beside the time"
    )
    tuned: dict[tuple[int, int], list[GemmChoice]] = {}
    for model in options.shapes:
        for part, (n, k) in SHAPES[model].items():
            weight, scale = torch.randn(n, k, device="cuda").bfloat16(), None
            if options.fp8:
                weight, scale = triton_linear.quantise_channels(weight)
            weights = copies_past_the_cache(weight)
            for rows in options.rows:
                few = [choose(rows, n, k), *(LIBRARIES if not options.fp8 else [])]
                choices = candidates(rows, n, k) if options.tune else few
                found = measure(rows, weights, scale, choices)
                tuned.setdefault((n, k), []).append(worthwhile(found))
                shown = found[:1] if options.tune else [pair for pair in found if pair[1] == few[0]][:1]
                shown += [pair for pair in found if pair[1].method is Method.CUBLAS][:1]
                shown += [pair for pair in found if pair[1].method is Method.CUBLASLT][:1]
                shown += found[1:4] if options.tune else []
                print(
                    " | ".join(line(f"{model} {part}", rows, weight, us, bandwidth, one) for us, one in shown)
                )
            del weights, weight
    if options.write:
        print(rewrite_table(tuned, card))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
