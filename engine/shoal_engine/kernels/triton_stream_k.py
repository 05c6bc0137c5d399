"""y = x W^T in bfloat16 for 32 to 512 rows on Hopper: tiles fetched by the copy engine, work cut evenly (`stream_plan`).

Where programs share a tile, each leaves its float32 part in memory and then adds up some rows of all parts, in their
order: the same bits every time. Not for prompts, float8 or biases.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from shoal_engine.kernels import gluon_stream_k
from shoal_engine.kernels.gemm_table import GemmChoice, Method
from shoal_engine.kernels.gpu import kind_of
from shoal_engine.kernels.stream_plan import SUM_ROWS, StreamPlan, plan_stream
from shoal_engine.kernels.triton_jit import jit, jit_once

MAX_SHARED_TILES = 16384
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_WIDEN = tl.constexpr(
    _INTERPRETED
)  # the interpreter cannot multiply bfloat16; products of it are exact in float32
_SUM_ROWS = tl.constexpr(SUM_ROWS)


@jit
def _multiply(x, w, acc):  # type: ignore[no-untyped-def]
    if _WIDEN:
        return tl.dot(x.to(tl.float32), w.to(tl.float32).T, acc, input_precision="ieee")
    return tl.dot(x, w.T, acc)


@jit
def _finish(acc, out, rows, cols, m, n):  # type: ignore[no-untyped-def]
    """Write sums of rows x cols to out [M, N]."""
    there = (rows < m)[:, None] & (cols < n)[None, :]
    place = rows.to(tl.int64)[:, None] * n + cols[None, :]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=there)


@jit
def _slot(partial, program, begins_before, floats: tl.constexpr):  # type: ignore[no-untyped-def]
    """A program leaves at most two parts: of the tile that it enters in the middle, and of the one that it leaves so."""
    return partial + (2 * program + tl.where(begins_before, 0, 1)).to(tl.int64) * floats


@jit_once("m", "n", "steps", "tiles_m", "total", "budget", "skew")
def _stream(  # type: ignore[no-untyped-def]
    x, weight, out, partial, arrivals, m, n, steps, tiles_m, total, budget, skew,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, most_parts: tl.constexpr,
    multiplies: tl.constexpr, sums: tl.constexpr,
):  # fmt: skip
    """out [M, N] from descriptors of x [M, K] and weight [N, K]."""
    floats: tl.constexpr = block_m * block_n
    program = tl.program_id(0)
    start = program * budget
    end = tl.minimum(start + budget, total)
    tile_first = start // steps
    tile_last = (end - 1) // steps
    if multiplies:
        for tile in range(tile_first, tile_last + 1):
            first = tl.maximum(start - tile * steps, 0)
            last = tl.minimum(end - tile * steps, steps)
            row = tile % tiles_m * block_m
            col = tile // tiles_m * block_n
            acc = tl.zeros((block_m, block_n), tl.float32)
            offset = tile * skew % steps
            for step in range(first, last):
                inner = tl.where(step + offset < steps, step + offset, step + offset - steps) * block_k
                acc = _multiply(x.load([row, inner]), weight.load([col, inner]), acc)
            rows, cols = tl.arange(0, block_m), tl.arange(0, block_n)
            if most_parts == 1 or last - first == steps:
                _finish(acc, out, row + rows, col + cols, m, n)
            else:
                part = _slot(partial, program, first > 0, floats) + rows[:, None] * block_n + cols[None, :]
                tl.store(part, acc)
                tl.debug_barrier()  # every thread's sums are written before one thread says so
                tl.atomic_add(arrivals + tile, 1, sem="release")
    if sums and most_parts > 1:
        _sum_tile(
            out, partial, arrivals, program, tile_first, m, n, steps, tiles_m, budget, start, end,
            block_m, block_n, floats, most_parts, multiplies,
        )  # fmt: skip
        if tile_last != tile_first:
            _sum_tile(
                out, partial, arrivals, program, tile_last, m, n, steps, tiles_m, budget, start, end,
                block_m, block_n, floats, most_parts, multiplies,
            )  # fmt: skip


@jit
def _sum_tile(  # type: ignore[no-untyped-def]
    out, partial, arrivals, program, tile, m, n, steps, tiles_m, budget, start, end,
    block_m: tl.constexpr, block_n: tl.constexpr, floats: tl.constexpr, most_parts: tl.constexpr,
    waits: tl.constexpr,
):  # fmt: skip
    """If `tile` is shared, wait for its parts and finish this program's turns of its rows."""
    begin = tile * steps
    if (begin < start) | (begin + steps > end):
        lead = begin // budget
        parts = (begin + steps - 1) // budget - lead + 1
        if waits:
            seen = tl.atomic_add(arrivals + tile, 0, sem="acquire")
            while seen < parts:
                seen = tl.atomic_add(arrivals + tile, 0, sem="acquire")
        cols = tl.arange(0, block_n)
        for turn in range(program - lead, block_m // _SUM_ROWS, parts):
            rows = turn * _SUM_ROWS + tl.arange(0, _SUM_ROWS)
            place = rows[:, None] * block_n + cols[None, :]
            acc = tl.zeros((_SUM_ROWS, block_n), tl.float32)
            for one in tl.static_range(most_parts):
                part = _slot(partial, lead + one, (lead + one) * budget > begin, floats) + place
                left = place * 0 + one < parts
                acc += tl.load(part, mask=left, other=0.0, cache_modifier=".cg")
            row, col = tile % tiles_m * block_m, tile // tiles_m * block_n
            _finish(acc, out, row + rows, col + cols, m, n)
        tl.debug_barrier()
        # Each part counts twice, when written and when added: the last to add leaves zero for the next call.
        if tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == 2 * parts - 1:
            tl.store(arrivals + tile, 0)


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether the card has the copy engine that the tiles are fetched by, and the operands are such as it takes."""
    right = x.dtype == weight.dtype == torch.bfloat16 and x.shape[1] % 8 == 0 and weight.is_contiguous()
    return right and (_INTERPRETED or kind_of(x.device).capability[0] == 9)


def stream(x: Tensor, weight: Tensor, choice: GemmChoice) -> Tensor:
    """x [M, K] bfloat16 times weight [N, K] bfloat16 -> y [M, N].

    K a multiple of 8, both contiguous. As `triton_linear.linear`, call it once before a CUDA graph records it.
    """
    x, (m, k), n = x.contiguous(), x.shape, weight.shape[0]
    _check(x, weight)
    plan = plan_stream(m, n, k, choice, _processors(x.device))
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    partial, arrivals = (x, x) if plan.most_parts == 1 else _shared(x.device)
    _check_space(plan, choice, partial)
    if choice.method is Method.WARPS and not _INTERPRETED:
        gluon_stream_k.launch(x, weight, out, partial, arrivals, plan, choice)
        return out
    # The interpreter runs one program after the other: none may wait, so the sums are a second round of all.
    for multiplies, sums in [(True, False), (False, True)] if _INTERPRETED else [(True, True)]:
        _stream[(plan.programs,)](
            TensorDescriptor.from_tensor(x, [choice.block_m, choice.block_k]),
            TensorDescriptor.from_tensor(weight, [choice.block_n, choice.block_k]),
            out, partial, arrivals, m, n,
            plan.steps, plan.tiles_m, plan.total, plan.budget, choice.skew % plan.steps,
            choice.block_m, choice.block_n, choice.block_k, plan.most_parts, multiplies, sums,
            num_warps=choice.warps, num_stages=choice.stages,
        )  # fmt: skip
    return out


@functools.cache
def _processors(device: torch.device) -> int:
    return 4 if device.type == "cpu" else kind_of(device).processors


@functools.cache
def _shared(device: torch.device) -> tuple[Any, Any]:
    """One per device and never freed, because recorded graphs hold its address. Calls on two streams must not overlap."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("call stream once with this shape before a CUDA graph records it")
    floats = (
        2 * _processors(device) * 128 * 256
    )  # a tile of float32 sums fills the registers of a multiprocessor
    partial = torch.empty((floats,), dtype=torch.float32, device=device)
    return partial, torch.zeros(MAX_SHARED_TILES, dtype=torch.int32, device=device)


def _check(x: Tensor, weight: Tensor) -> None:
    if x.shape[0] == 0 or x.shape[1] != weight.shape[1] or x.shape[1] % 8 or not weight.is_contiguous():
        raise ValueError(f"expected rows of x and a contiguous weight [N, {x.shape[1]}], a multiple of 8")
    if x.dtype != torch.bfloat16 or weight.dtype != torch.bfloat16:
        raise ValueError(f"expected bfloat16, got {x.dtype} and {weight.dtype}")


def _check_space(plan: StreamPlan, choice: GemmChoice, partial: Any) -> None:
    floats = 2 * plan.programs * choice.block_m * choice.block_n
    if plan.most_parts > 1 and (floats > partial.numel() or plan.tiles_m * plan.tiles_n > MAX_SHARED_TILES):
        raise ValueError(f"the parts of {choice} do not fit their memory")
