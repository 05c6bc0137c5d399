"""Products of float8 weights on one GPU: microseconds of every way beside bfloat16's, rounding of activations included.

    python benchmarks/h200/fp8.py [--rows 1 8 32] [--shapes 8b]
    python benchmarks/h200/fp8.py --tune --write      # sweep the kernels too, rewrite fp8_table.py (into $OUT, if set)

Every way is first checked against float64: of the dequantised weight, and of the rounded input where it rounds that. A
line has bf16; channel scales in the ways that `fp8_table.Fp8Way` explains; block scales by our kernel and by torch. Behind
ways that round the input stands their error against the exact one.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import re
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from fp8_ways import (
    DOTS,
    GEMVS,
    Way,
    by_group,
    by_row,
    dots,
    product_of,
    random_weight,
    rounding_way,
    ways,
    wide_way,
)
from graph_clock import copies_past_the_cache, us_per_call
from torch import Tensor

from shoal_engine.kernels import fp8_table, triton_linear
from shoal_engine.kernels.fp8_table import ROW_BUCKETS, Fp8Choice, Fp8Way, choose_fp8
from shoal_engine.kernels.gemm_table import MAX_ROWS, GemmChoice
from shoal_engine.kernels.triton_norm import silu_mul
from shoal_engine.kernels.triton_quantise import quantise_groups, quantise_rows, silu_mul_rows
from shoal_engine.quantization.fp8 import Fp8Weight

SHAPES = {
    "8b": {"qkv": (6144, 4096), "o": (4096, 4096), "gate-up": (28672, 4096), "down": (4096, 14336)},
    "0.6b": {"qkv": (4096, 1024), "o": (1024, 2048), "gate-up": (6144, 1024), "down": (1024, 3072)},
}
CHECKED_ROWS = 256
WORST_ERROR = 5e-3  # against the input as it is multiplied
NOISE = 0.02
SERVED_ROWS = (*ROW_BUCKETS, 8192)


def compile_one(job: tuple[int, Fp8Choice, bool]) -> None:
    """Into Triton's cache on disk, in a process of its own; shapes are arguments, so small ones serve for all."""
    rows, choice, in_blocks = job
    tile = choice.tile
    if tile is None:
        return
    n, k = max(tile.block_n, 128), 2 * max(tile.block_k * tile.split_k, 512)
    x, weight = torch.randn(rows, k, device="cuda").bfloat16(), random_weight(n, k, in_blocks)
    try:
        (wide_way(tile, in_blocks) if choice.way is Fp8Way.WIDE else rounding_way(choice)).run(x, weight)
    except Exception as error:  # too much shared memory, say; the sweep leaves it out again
        print(f"cannot run {choice} at {rows} rows: {type(error).__name__}")


def compile_all(rows: list[int]) -> None:
    heights = sorted({triton_linear.padded_rows(m) for m in rows if m <= MAX_ROWS})
    jobs = [(1, Fp8Choice(Fp8Way.WIDE, one), False) for one in GEMVS if 1 in rows]
    jobs += [(1, Fp8Choice(Fp8Way.WIDE, one), True) for one in dots(4096, 4096, True)]
    for height, way in itertools.product(heights, (Fp8Way.WIDE, Fp8Way.TILE)):
        jobs += [(max(height, 2), Fp8Choice(way, one), False) for one in DOTS if one.split_k <= 2]
    for height in heights:
        jobs += [(max(height, 2), Fp8Choice(Fp8Way.WIDE, one), True) for one in dots(4096, 4096, True)]
    workers = min(14, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_one, jobs, chunksize=4))


@dataclass(frozen=True)
class Found:
    way: Way
    us: float
    error: float  # against the exact input


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def measure(x: Tensor, weights: list[Fp8Weight], one: Way, transposed: Tensor) -> Found | None:
    """None when the result is wrong or the way cannot run. transposed: the dequantised weight [K, N] in float64."""
    try:
        got, few = one.run(x, weights[0])[:CHECKED_ROWS], x[:CHECKED_ROWS]
        error = relative(got, one.rounded(few) @ transposed)
        if not error <= WORST_ERROR:
            print(f"WRONG {one.choice} rows {x.shape[0]}: {error:.1e}")
            return None
        us = us_per_call(lambda weight: one.run(x, weight), weights)
        return Found(one, us, relative(got, few.double() @ transposed))
    except Exception as error:
        print(f"cannot run {one.choice} rows {x.shape[0]}: {str(error).splitlines()[-1:]}"[:200])
        return None


def best(found: list[Found], in_blocks: bool) -> Found | None:
    """The fastest; one that keeps the input's bits where that costs no more than the noise."""
    fits = sorted((one for one in found if one.way.in_blocks == in_blocks), key=lambda one: one.us)
    kept = [one for one in fits if one.way.choice.way is Fp8Way.WIDE]
    if kept and kept[0].us < fits[0].us * (1 + NOISE):
        return kept[0]
    return fits[0] if fits else None


def shown(found: list[Found], way: Fp8Way, in_blocks: bool) -> str:
    fits = [one for one in found if one.way.choice.way is way and one.way.in_blocks == in_blocks]
    if not fits:
        return "-"
    one = min(fits, key=lambda one: one.us)
    c = one.way.choice.tile
    tile = (
        "" if c is None else f" {c.method.value[0]}{c.block_n}x{c.block_k}/{c.split_k}w{c.warps}s{c.stages}"
    )
    return f"{one.us:.1f}{tile}" + (f" {one.error:.1%}" if one.error > WORST_ERROR else "")


def line(part: str, rows: int, bf16: float, found: list[Found]) -> str:
    ways = [f"{way.value} {shown(found, way, False)}" for way in Fp8Way if way is not Fp8Way.BLOCKS]
    blocks = f"blocks: wide {shown(found, Fp8Way.WIDE, True)} torch {shown(found, Fp8Way.BLOCKS, True)}"
    ours = [best(found, in_blocks) for in_blocks in (False, True)]
    names = " ".join("-" if one is None else one.way.choice.way.value for one in ours)
    return f"{part:<10} M={rows:<4} bf16 {bf16:.1f} | {' | '.join(ways)} | {blocks} => {names}"


Tuned = dict[tuple[int, int], list[Fp8Choice]]


def sweep(part: str, n: int, k: int, rows: list[int], tune: bool, channels: Tuned, in_blocks: Tuned) -> None:
    stored = {blocked: random_weight(n, k, blocked) for blocked in (False, True)}
    weights = {
        blocked: [Fp8Weight(values, one.scale) for values in copies_past_the_cache(one.values)]
        for blocked, one in stored.items()
    }
    for one in (*weights[False], *weights[True]):
        product_of(one)  # before a graph records its use
    transposed = {blocked: one.dequantise(torch.float64).T for blocked, one in stored.items()}
    dense = copies_past_the_cache(stored[False].dequantise(torch.bfloat16))
    for m in rows:
        x = torch.randn(m, k, device="cuda").bfloat16()
        bf16 = us_per_call(partial(triton_linear.linear, x), dense)
        each = ways(m, n, k, tune)
        found = [measure(x, weights[one.in_blocks], one, transposed[one.in_blocks]) for one in each]
        right = [one for one in found if one is not None]
        print(line(part, m, bf16, right), flush=True)
        for blocked, tuned in ((False, channels), (True, in_blocks)):
            chosen = best(right, blocked)
            if m in ROW_BUCKETS:
                by_rule = choose_fp8(m, n, k, blocked)
                tuned.setdefault((n, k), []).append(by_rule if chosen is None else chosen.way.choice)
    product_of.cache_clear()


def rounding_times() -> None:
    for m, k in ((64, 4096), (64, 14336), (256, 4096), (1024, 4096), (8192, 4096), (8192, 14336)):
        inputs = copies_past_the_cache(torch.randn(m, k, device="cuda").bfloat16())
        rows, groups = us_per_call(quantise_rows, inputs), us_per_call(quantise_groups, inputs)
        print(
            f"rounding {m}x{k}: rows {rows:.1f} us ({m * k * 3 / rows / 1e6:.2f} TB/s), groups {groups:.1f} us"
        )
    for m in (64, 8192):
        inputs = copies_past_the_cache(torch.randn(m, 2 * 14336, device="cuda").bfloat16())
        (one, scales), (two, other) = silu_mul_rows(inputs[0]), quantise_rows(silu_mul(inputs[0]))
        error = relative(one.double() * scales, two.double() * other)
        fused = us_per_call(silu_mul_rows, inputs)
        apart = us_per_call(lambda x: quantise_rows(silu_mul(x)), inputs)
        print(f"gated {m}x14336: one kernel {fused:.1f} us, two {apart:.1f} us, apart by {error:.1e}")


def check_broken_tokens() -> None:
    x = torch.randn(5, 4096, device="cuda").bfloat16()
    x[1, 7], x[3, 9] = float("nan"), float("inf")
    for name, wide in (("rows", by_row(x)), ("groups", by_group(x))):
        bad = (~wide.isfinite()).any(1).tolist()
        print(
            f"broken tokens by {name}: {bad} {'ok' if bad == [False, True, False, True, False] else 'WRONG'}"
        )


def check_small_numbers() -> None:
    """All weights below e4m3's smallest normal number, all of its numbers once."""
    x = torch.randn(1, 512, device="cuda").bfloat16()
    bits = torch.arange(512, device="cuda").view(1, -1).repeat(128, 1)
    for name, kept in (("subnormal", bits % 8), ("all", bits % 256)):
        values = torch.where(kept % 128 == 127, 0, kept).to(torch.uint8).view(torch.float8_e4m3fn)
        weight = Fp8Weight(values, torch.ones(128, device="cuda"))
        for choice in (GEMVS[0], DOTS[0]):
            one = GemmChoice(choice.method, choice.block_n, 128, 1, 4, 1)
            got = triton_linear.launch(x, weight.values, weight.scale, one)
            error = relative(got, x.double() @ weight.dequantise(torch.float64).T)
            print(
                f"{name} weights by {one.method.value}: {error:.1e} {'ok' if error < WORST_ERROR else 'WRONG'}"
            )


def table_text(tuned: Tuned, name: str) -> list[str]:
    lines = [f"{name}: dict[tuple[int, int], tuple[_Row, ...]] = {{"]
    for shape, row in tuned.items():
        lines.append(f"    {shape}: (")
        for one in row:
            tile = one.tile
            numbers = ""
            if tile is not None:
                method, sides = tile.method.name, f"{tile.block_n}, {tile.block_k}"
                numbers = f" _{method}, {sides}, {tile.split_k}, {tile.warps}, {tile.stages}"
            lines.append(f"        (_{one.way.name},{numbers}),")
        lines.append("    ),")
    return [*lines, "}"]


def write_table(channels: Tuned, in_blocks: Tuned, card: str) -> None:
    text = "\n".join(
        [
            f"# Measured on one {card}, torch {torch.__version__}.",
            *table_text(channels, "_CHANNELS"),
            *table_text(in_blocks, "_IN_BLOCKS"),
        ]
    )
    path = Path(fp8_table.__file__)
    whole = re.sub(
        r"(# --- tuned ---\n).*?(\n# --- end ---)",
        lambda found: found[1] + text + found[2],
        path.read_text(),
        flags=re.DOTALL,
    )
    target = Path(os.environ["OUT"]) / path.name if os.environ.get("OUT") else path
    target.write_text(whole)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=list(SERVED_ROWS))
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["8b"])
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.write and options.rows != list(SERVED_ROWS):
        parser.error("--write needs the times of all rows")
    started = time.monotonic()
    if options.tune:
        compile_all(options.rows)
    card = torch.cuda.get_device_name()
    print(f"{card}, torch {torch.__version__}, kernels compiled in {time.monotonic() - started:.0f} s")
    check_broken_tokens()
    check_small_numbers()
    rounding_times()
    channels: Tuned = {}
    in_blocks: Tuned = {}
    for model in options.shapes:
        for part, (n, k) in SHAPES[model].items():
            sweep(f"{model} {part}", n, k, options.rows, options.tune, channels, in_blocks)
    if options.write:
        write_table(channels, in_blocks, card)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
