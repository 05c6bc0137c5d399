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
from torch import Tensor

from shoal_engine.fused_decode import FusedDecode
from shoal_engine.kernels.fused_tiles import AttentionTile, GemvTile, ProductTile, row_block
from shoal_engine.kernels.triton_fused_gemv import multiply_row
from shoal_engine.kernels.triton_fused_product import multiply_rows
from shoal_engine.models.llama import Llama

NAMES = ("gate_up", "down", "qkv", "output")
GAIN = 0.997  # a tile must be faster by more than a graph timed twice differs
Shape = tuple[int, int]
Job = tuple[str, int, str, Any]  # model, rows, which tile is another one ("" = none), that tile


def gemv_tiles(n: int, k: int) -> Iterator[GemvTile]:
    for steps, segments, warps in itertools.product((1, 2, 4), (1, 2, 4, 8), (1, 2, 4, 8)):
        programs = n // (steps * warps)
        if segments * 256 <= k and steps * segments <= 8 and programs >= 132 and steps * warps >= 2:
            yield GemvTile(steps, segments, warps)


def product_tiles(n: int, k: int, rows: int) -> Iterator[ProductTile]:
    for block_n, block_k, parts in itertools.product((64, 128), (128, 256), (1, 2, 4, 8)):
        steps, programs = k // (block_k * parts), n // block_n * parts
        if k % (block_k * parts) or not 96 <= programs <= 1100 or (block_n, block_k) == (128, 256):
            continue
        if steps <= 2:
            for early in (False, True):
                yield ProductTile(block_n, block_k, parts, 1, 4, 2, steps, early)
            continue
        for stages, head in ((2, 1), (3, 1), (4, 1), (4, 2), (6, 1)):
            if stages * block_k * (block_n + rows) * 2 <= 110 * 1024:
                yield ProductTile(block_n, block_k, parts, 1, 4, stages, head, False)
    if k <= 4096 and rows <= 32:
        for block_n, warps, early in itertools.product((16, 32), (4, 8), (False, True)):
            block_k = 1 << (k - 1).bit_length()
            if (block_n + rows) * block_k * 2 <= 200 * 1024 and n // block_n >= 64:
                yield ProductTile(block_n, block_k, 1, warps, warps, 2, 1, early)


def attention_tiles(rows: int) -> list[AttentionTile]:
    programs = (128, 256, 512) if rows == 1 else (528, 792, 1056, 1584)
    tiles = [AttentionTile(64, 4, p, early) for p in programs for early in (False, True)]
    shapes = [(64, 8, 1), (32, 4, 2), (32, 2, 2), (128, 8, 1)]
    return tiles + [AttentionTile(t, w, p * more, rows == 1) for t, w, more in shapes for p in programs[:3]]


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


def kernel_us(case: Case, decode: FusedDecode) -> dict[str, float]:
    """Microseconds a layer of each kernel in a chain of itself over all layers: without the others, so a guide only."""
    rows, overlap, chains = len(case.token_ids), decode._overlap, {}
    step = decode._step(rows, case.batch)
    space, tiles, decode_layers = step.space, step.products, decode._layers
    stream, sums, norm = space.stream, space.sums, decode._final

    def product(name: str, x: Tensor, out: Tensor) -> Callable[[], None]:
        gated, adds, normed = name == "gate_up", name in ("output", "down"), name in ("gate_up", "qkv")

        def chain() -> None:
            for layer in decode_layers:
                weight, tile = getattr(layer, name), getattr(tiles, name)
                if rows == 1:
                    multiply_row(x, weight, out, tile, overlap, norm if normed else None, gated, adds)
                else:
                    multiply_rows(
                        x, weight, out, tile, sums, overlap, stream if normed else None, 16, 1e-6, gated,
                        stream if adds else None, norm.gain if adds else None,
                    )  # fmt: skip

        return chain

    def attention() -> None:
        for layer, cache in zip(decode_layers, case.cache.unbind(0), strict=True):
            decode._attend(layer, step, cache)

    chains["qkv"] = product("qkv", stream.scaled, space.qkv)
    chains["attention"] = attention
    chains["output"] = product("output", space.attended, stream.hidden)
    chains["gate_up"] = product("gate_up", stream.scaled, space.activated)
    chains["down"] = product("down", space.activated, stream.hidden)
    for chain in chains.values():
        chain()
    return {name: round(graph_us(chain, 7) / len(decode_layers), 1) for name, chain in chains.items()}
