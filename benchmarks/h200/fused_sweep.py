"""One descent over the tiles of a fused decode step, each timed inside a graph of the step. Compiles in many processes."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import astuple, replace
from typing import Any

import torch
from fused_models import Case, first_layers, fused, random_case, random_model
from graph_clock import us_per_call
from torch import Tensor

from shoal_engine.fused_choice import RowsTiles, RowTiles
from shoal_engine.fused_decode import FusedDecode
from shoal_engine.kernels.fused_tiles import GemvTile, ProductTile, row_block
from shoal_engine.kernels.triton_fused_gemv import multiply_row
from shoal_engine.kernels.triton_fused_product import multiply_rows
from shoal_engine.models.llama import Llama

NAMES = ("gate_up", "down", "qkv", "output")
GAIN = 0.997  # a tile must be faster by more than a graph timed twice differs
Shape = tuple[int, int]
Job = tuple[str, int, str, Any]  # model, rows, which tile is another one ("" = none), that tile


def gemv_tiles(n: int, k: int, gated: bool) -> Iterator[GemvTile]:
    most = 4 if gated else 8  # registers hold two such tiles
    for steps, segments, warps in itertools.product((1, 2, 4), (1, 2, 4, 8), (2, 4, 8)):
        if segments * 256 <= k and 2 <= steps * segments <= most and n // (steps * warps) >= 132 and (
            segments > 1 or gated
        ):  # fmt: skip
            yield GemvTile(steps, segments, warps)


def product_tiles(n: int, k: int, rows: int) -> Iterator[ProductTile]:
    """Whole program on a tile; then warps that share K, which need no parts for small K."""
    for block_n, block_k, parts in itertools.product((64, 128), (64, 128, 256), (1, 2, 4, 8, 16)):
        steps, programs = k // (block_k * parts), n // block_n * parts
        if (
            k % (block_k * parts)
            or not 64 <= programs <= 900
            or (block_n == 128 and (block_k == 256 or n < 8192))
        ):
            continue
        if steps <= 2:
            yield from (
                ProductTile(block_n, block_k, parts, 1, 4, 2, steps, early) for early in (False, True)
            )
            continue
        for stages in {64: (6,), 128: (3, 4, 6), 256: (3,)}[block_k]:
            if _shared(block_n, block_k, rows) * stages <= 110 * 1024:
                yield ProductTile(block_n, block_k, parts, 1, 4, stages, 1, False)
                if stages == 4 and k >= 4096:
                    yield ProductTile(block_n, block_k, parts, 1, 4, stages, 2, False)
    if k <= 4096 and n <= 8192:
        for block_n, parts in itertools.product((16, 32), (1, 2, 3, 4, 6)):
            block_k, programs = k // parts, n // block_n * parts
            power_of_two = k % parts == 0 and block_k & (block_k - 1) == 0
            if power_of_two and 64 <= programs <= 520 and _shared(block_n, block_k, rows) <= 100 * 1024:
                yield ProductTile(block_n, block_k, parts, 4, 4, 2, 1, False)
                if parts == 1:
                    yield ProductTile(block_n, block_k, parts, 4, 4, 2, 1, True)
                    yield ProductTile(block_n, block_k, parts, 8, 8, 2, 1, False)
    elif k % 512 == 0 and rows <= 16:
        yield from (
            ProductTile(32, 512, parts, 4, 4, 3, 1, False) for parts in (1, 2) if n // 32 * parts <= 900
        )


def _shared(block_n: int, block_k: int, rows: int) -> int:
    """Bytes of one tile of each operand."""
    return 2 * block_k * (block_n + rows)


@functools.cache
def _small(name: str, rows: int) -> tuple[FusedDecode, Llama]:
    model = first_layers(random_model(name, few_tokens=True), 1)
    return FusedDecode(model, rows), model


def compile_one(job: Job) -> str | None:
    """Into Triton's cache on disk, by one step of one layer."""
    name, rows, which, tile = job
    decode, model = _small(name, rows)
    products = decode.products(rows)
    try:
        if which:
            decode.use(rows, replace(products, **{which: tile}))
        case = random_case(model, rows, 40)
        fused(case, decode)()
        torch.cuda.synchronize()
    except Exception as error:
        return f"cannot run {job}: {type(error).__name__} {str(error)[:80]}"
    finally:
        decode.use(rows, products)
    return None


def compile_all(jobs: Sequence[Job], deadline: float) -> None:
    """What is not done by the deadline is left to whoever needs it."""
    began = time.monotonic()
    workers = min(14, os.cpu_count() or 1, len(jobs))
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    futures = [pool.submit(compile_one, job) for job in jobs]
    done, late = wait(futures, timeout=max(1.0, deadline - began))
    pool.shutdown(wait=False, cancel_futures=True)
    failures = [future.result() for future in done if not future.cancelled() and future.exception() is None]
    print(
        f"{len(done)} of {len(jobs)} steps compiled in {time.monotonic() - began:.0f} s, {len(late)} late",
        flush=True,
    )
    print("\n".join([one for one in failures if one][:6]))


def default_jobs(name: str, rows: Sequence[int]) -> list[Job]:
    """The tiles in use."""
    return [(name, count, "", None) for count in rows]


def shapes_of(decode: FusedDecode) -> dict[str, Shape]:
    layer = decode._layers[0]
    return {name: tuple(getattr(layer, name).values.shape) for name in NAMES}


def sweep_jobs(name: str, decode: FusedDecode, rows: int, names: Sequence[str]) -> list[Job]:
    """Every tile that `descend` tries."""
    products, jobs = decode.products(rows), []
    for which, (n, k) in shapes_of(decode).items():
        if which not in names:
            continue
        jobs += [(name, rows, which, tile) for tile in tiles_of(products, which, n, k, rows)]
    return jobs


def tiles_of(products: RowTiles | RowsTiles, which: str, n: int, k: int, rows: int) -> list[Any]:
    """For the kernels that multiply one row, or more."""
    if isinstance(products, RowTiles):
        return list(gemv_tiles(n, k, which == "gate_up"))
    return list(product_tiles(n, k, rows))


def graph_us(step: Callable[[], Any], replays: int = 9) -> float:
    return us_per_call(lambda _: step(), [None], replays)


def descend(
    case: Case, decode: FusedDecode, names: Sequence[str], deadline: float
) -> dict[tuple[int, int, int], tuple[Any, ...]]:
    """Table rows of the best tile for each product, one after the other, each with the best before it."""
    rows = len(case.token_ids)
    step = fused(case, decode)
    best = graph_us(step)
    print(f"rows {rows}: {best:.0f} us to begin with, {len(case.model.blocks)} layers", flush=True)
    found: dict[tuple[int, int, int], tuple[Any, ...]] = {}
    for name in names:
        products, shape = decode.products(rows), shapes_of(decode)[name]
        current, tried = getattr(products, name), []
        for tile in tiles_of(products, name, *shape, rows):
            if time.monotonic() > deadline:
                print("out of time")
                break
            decode.use(rows, replace(products, **{name: tile}))
            try:
                step()
                tried.append((graph_us(step, 5), tile))
            except Exception as error:
                print(f"  {name} {tile}: {type(error).__name__} {str(error)[:60]}")
        tried.sort(key=lambda pair: pair[0])
        if tried and tried[0][0] < best * GAIN:
            best, current = tried[0]
        decode.use(rows, replace(products, **{name: current}))
        shown = "; ".join(f"{us:.0f} {astuple(tile)}" for us, tile in tried[:4])
        print(f"  {name:9} {best:7.0f} us with {astuple(current)} | {shown}", flush=True)
        found[*shape, 1 if isinstance(products, RowTiles) else row_block(rows)] = astuple(current)
    return found


def kernel_us(case: Case, decode: FusedDecode) -> dict[str, float]:
    """Microseconds a layer of each kernel in a chain of itself over all layers: without the others, so a guide only."""
    rows, overlap, chains = len(case.token_ids), decode._overlap, {}
    step = decode._step(rows, case.batch, case.cache.element_size())
    space, tiles, decode_layers = step.space, step.products, decode._layers
    stream, sums, norm = space.stream, space.sums, decode._final

    def product(name: str, x: Tensor, out: Tensor) -> Callable[[], None]:
        gated, adds, normed = name == "gate_up", name in ("output", "down"), name in ("gate_up", "qkv")

        def chain() -> None:
            for layer in decode_layers:
                weight, tile = getattr(layer, name), getattr(tiles, name)
                if isinstance(tiles, RowTiles):
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
