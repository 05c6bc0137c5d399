"""One descent over the tiles of a fused decode step, each timed inside a graph of the step. Compiles in many processes."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, replace
from typing import Any

import torch
from fused_models import Case, first_layers, fused, random_case, random_model
from graph_clock import us_per_call

from shoal_engine.fused_decode import FusedDecode
from shoal_engine.kernels.fused_tiles import AttentionTile, GemvTile, ProductTile, row_block
from shoal_engine.models.llama import Llama

NAMES = ("gate_up", "down", "qkv", "output")
GAIN = 0.997  # a tile must be faster by more than a graph timed twice differs
Shape = tuple[int, int]
Job = tuple[str, int, str, Any]  # model, rows, which tile is another one ("" = none), that tile


def gemv_tiles(n: int, k: int) -> Iterator[GemvTile]:
    for steps, segments, warps in itertools.product((1, 2), (2, 4, 8, 16), (2, 4, 8)):
        small = steps * warps > 8 and n <= 4096
        if segments * 256 <= k and steps * segments <= 16 and not small:
            yield GemvTile(steps, segments, warps)


def product_tiles(n: int, k: int, rows: int) -> Iterator[ProductTile]:
    for block_n, block_k, parts, early in itertools.product(
        (64, 128), (128, 256), (1, 2, 4, 8), (False, True)
    ):
        steps, programs = k // (block_k * parts), n // block_n * parts
        if (
            steps < 1
            or not 96 <= programs <= 2048
            or (early and steps > 2)
            or (block_n, block_k) == (128, 256)
        ):
            continue
        if steps <= 2:
            yield ProductTile(block_n, block_k, parts, 1, 4, 2, steps, early)
        else:
            for stages in (3, 4, 6):
                if stages * block_k * (block_n + rows) * 2 <= 110 * 1024:
                    yield ProductTile(block_n, block_k, parts, 1, 4, stages, 1, early)
    if k <= 4096 and rows <= 16:
        for block_n, warps, early in itertools.product((16, 32), (4, 8), (False, True)):
            if block_n * k <= 16 * 4096 and n // block_n >= 64:
                yield ProductTile(block_n, 1 << (k - 1).bit_length(), 1, warps, warps, 2, 1, early)


def attention_tiles(rows: int) -> list[AttentionTile]:
    programs = (128, 256, 512) if rows == 1 else (528, 792, 1056, 1584)
    tiles = [AttentionTile(64, 4, p, early) for p in programs for early in (False, True)]
    return tiles + [AttentionTile(32, 4, p * 2, rows == 1) for p in programs[:2]] + [
        AttentionTile(128, 8, p // 2, rows == 1) for p in programs[1:3]
    ]  # fmt: skip


@functools.cache
def _small(name: str) -> tuple[FusedDecode, Llama]:
    model = first_layers(random_model(name, few_tokens=True), 1)
    return FusedDecode(model), model


def compile_one(job: Job) -> str | None:
    """Into Triton's cache on disk, by one step of one layer."""
    name, rows, which, tile = job
    decode, model = _small(name)
    products, attention = decode.products(rows), decode.attention(rows)
    try:
        if which == "attention":
            decode.use(rows, products, tile)
        elif which:
            decode.use(rows, replace(products, **{which: tile}), attention)
        case = random_case(model, rows, 40)
        fused(case, decode)()
        torch.cuda.synchronize()
    except Exception as error:
        return f"cannot run {job}: {type(error).__name__} {str(error)[:80]}"
    finally:
        decode.use(rows, products, attention)
    return None


def compile_all(jobs: Sequence[Job]) -> None:
    began = time.monotonic()
    workers = min(14, os.cpu_count() or 1, len(jobs))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        failures = [found for found in pool.map(compile_one, jobs, chunksize=1) if found]
    print(f"{len(jobs)} steps compiled in {time.monotonic() - began:.0f} s", flush=True)
    print("\n".join(failures[:8]))


def default_jobs(name: str, rows: Sequence[int]) -> list[Job]:
    """The tiles in use."""
    return [(name, count, "", None) for count in rows]


def shapes_of(decode: FusedDecode) -> dict[str, Shape]:
    layer = decode._layers[0]
    return {name: tuple(getattr(layer, name).values.shape) for name in NAMES}  # type: ignore[misc]


def sweep_jobs(name: str, decode: FusedDecode, rows: int) -> list[Job]:
    """Every tile that `descend` tries."""
    jobs: list[Job] = [(name, rows, "attention", tile) for tile in attention_tiles(rows)]
    for which, (n, k) in shapes_of(decode).items():
        jobs += [(name, rows, which, tile) for tile in tiles_of(n, k, rows)]
    return jobs


def tiles_of(n: int, k: int, rows: int) -> list[Any]:
    return list(gemv_tiles(n, k) if rows == 1 else product_tiles(n, k, rows))


def graph_us(step: Callable[[], Any], replays: int = 9) -> float:
    return us_per_call(lambda _: step(), [None], replays)


def descend(case: Case, decode: FusedDecode, deadline: float) -> dict[tuple[int, int, int], tuple[Any, ...]]:
    """Table rows of the best tile for each product and for attention, one after the other, each with the best before it."""
    rows, layout = len(case.token_ids), decode._layout
    step = fused(case, decode)
    best = graph_us(step)
    print(f"rows {rows}: {best:.0f} us to begin with, {len(case.model.blocks)} layers", flush=True)
    found: dict[tuple[int, int, int], tuple[Any, ...]] = {}
    for name in (*NAMES, "attention"):
        products, attention = decode.products(rows), decode.attention(rows)
        shape = shapes_of(decode).get(name)
        current = attention if shape is None else getattr(products, name)
        tried = []
        for tile in attention_tiles(rows) if shape is None else tiles_of(*shape, rows):
            if time.monotonic() > deadline:
                print("out of time")
                break
            if shape is None:
                decode.use(rows, products, tile)
            else:
                decode.use(rows, replace(products, **{name: tile}), attention)
            try:
                step()
                tried.append((graph_us(step, 5), tile))
            except Exception as error:
                print(f"  {name} {tile}: {type(error).__name__} {str(error)[:60]}")
        tried.sort(key=lambda pair: pair[0])
        if tried and tried[0][0] < best * GAIN:
            best, current = tried[0]
        decode.use(*(
            (rows, products, current) if shape is None else (rows, replace(products, **{name: current}), attention)
        ))  # fmt: skip
        shown = "; ".join(f"{us:.0f} {astuple(tile)}" for us, tile in tried[:4])
        print(f"  {name:9} {best:7.0f} us with {astuple(current)} | {shown}", flush=True)
        block = row_block(rows) if rows > 1 else 1
        key = (layout.num_kv_heads, layout.head_dim, -block) if shape is None else (*shape, block)
        found[key] = astuple(current)
    return found
