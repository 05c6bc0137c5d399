"""The product of `triton_stream_k` with warps that only fetch: Gluon, Hopper, no interpreter. Launched by that file.

One warp keeps the copy engine ahead of two or three groups of four warps, each of which multiplies some rows of a tile by
all its columns. The fetching goes on across the ends of tiles, while the groups write what they have.
"""

from __future__ import annotations

from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from shoal_engine.kernels.gemm_table import GemmChoice
from shoal_engine.kernels.gluon_jit import barrier, jit, jit_once
from shoal_engine.kernels.stream_plan import SUM_ROWS, StreamPlan

_SUM_ROWS = gl.constexpr(SUM_ROWS)

# Up to Triton 3.6 it has another name.
_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared


@jit
def _advance(step, offset, tile_m, tile_n, steps, tiles_m, skew):  # type: ignore[no-untyped-def]
    """The next step and its tile, by counting: a division costs the one warp that fetches more than a fetch."""
    step += 1
    done = step == steps
    step = gl.where(done, 0, step)
    tile_m = gl.where(done, tile_m + 1, tile_m)
    offset = gl.where(done, offset + skew, offset)
    through = tile_m == tiles_m
    return (
        step,
        gl.where(offset >= steps, offset - steps, offset),
        gl.where(through, 0, tile_m),
        gl.where(through, tile_n + 1, tile_n),
    )


@jit
def _inner(step, offset, steps, block_k: gl.constexpr):  # type: ignore[no-untyped-def]
    return gl.where(step + offset >= steps, step + offset - steps, step + offset) * block_k


@jit
def _fetch_rows(x, xs, ready, slot, row, inner, groups: gl.constexpr, tall: gl.constexpr):  # type: ignore[no-untyped-def]
    for group in gl.static_range(groups):
        _load(x, [row + group * tall, inner], ready, xs.index(slot * groups + group))


@jit
def _fetch(  # type: ignore[no-untyped-def]
    x, weight, xs, ws, full, empty, steps, tiles_m, skew, start, end,
    groups: gl.constexpr, tall: gl.constexpr, block_n: gl.constexpr, block_k: gl.constexpr, stages: gl.constexpr,
):  # fmt: skip
    stage_bytes: gl.constexpr = (groups * tall + block_n) * block_k * 2
    tile = start // steps
    tile_m, tile_n, step, offset = tile % tiles_m, tile // tiles_m, start - tile * steps, tile * skew % steps
    first = gl.minimum(start + stages, end)
    for at in range(start, first):
        slot = at - start
        mbarrier.expect(full.index(slot), stage_bytes)
        inner = _inner(step, offset, steps, block_k)
        _load(weight, [tile_n * block_n, inner], full.index(slot), ws.index(slot))
        step, offset, tile_m, tile_n = _advance(step, offset, tile_m, tile_n, steps, tiles_m, skew)
    # Weights are there from the beginning; x is what the kernel before this one may still be writing.
    gdc_wait()
    tile_m, tile_n, step, offset = tile % tiles_m, tile // tiles_m, start - tile * steps, tile * skew % steps
    for at in range(start, first):
        slot = at - start
        inner = _inner(step, offset, steps, block_k)
        _fetch_rows(x, xs, full.index(slot), slot, tile_m * (groups * tall), inner, groups, tall)
        step, offset, tile_m, tile_n = _advance(step, offset, tile_m, tile_n, steps, tiles_m, skew)
    slot = start * 0
    phase = start * 0
    for _ in range(first, end):
        ready = full.index(slot)
        inner = _inner(step, offset, steps, block_k)
        mbarrier.wait(empty.index(slot), phase)
        mbarrier.expect(ready, stage_bytes)
        _fetch_rows(x, xs, ready, slot, tile_m * (groups * tall), inner, groups, tall)
        _load(weight, [tile_n * block_n, inner], ready, ws.index(slot))
        step, offset, tile_m, tile_n = _advance(step, offset, tile_m, tile_n, steps, tiles_m, skew)
        slot += 1
        phase = gl.where(slot == stages, phase ^ 1, phase)
        slot = gl.where(slot == stages, 0, slot)


@jit
def _finish(acc, out, rows, cols, m, n):  # type: ignore[no-untyped-def]
    there = (rows < m)[:, None] & (cols < n)[None, :]
    place = rows.to(gl.int64)[:, None] * n + cols[None, :]
    gl.store(out + place, acc.to(gl.bfloat16), mask=there)


@jit
def _multiply(  # type: ignore[no-untyped-def]
    out, partial, arrivals, xs, ws, full, empty, m, n, steps, tiles_m, budget, program, start, end,
    group: gl.constexpr, groups: gl.constexpr, tall: gl.constexpr, block_n: gl.constexpr,
    stages: gl.constexpr, most_parts: gl.constexpr,
):  # fmt: skip
    """One group's rows of every tile: whole ones to `out`, parts of shared ones to `partial`, where it then adds all."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, block_n, 16])
    floats: gl.constexpr = tall * block_n
    rows = gl.arange(0, tall, gl.SliceLayout(1, layout))
    cols = gl.arange(0, block_n, gl.SliceLayout(0, layout))
    gdc_wait()  # before this kernel writes what the one before may still be reading
    slot = start * 0
    phase = start * 0
    for tile in range(start // steps, (end - 1) // steps + 1):
        first = gl.maximum(start - tile * steps, 0)
        last = gl.minimum(end - tile * steps, steps)
        acc = gl.zeros((tall, block_n), gl.float32, layout)
        for step in range(first, last):
            mbarrier.wait(full.index(slot), phase)
            v = xs.index(slot * groups + group)
            more = warpgroup_mma(v, ws.index(slot).permute((1, 0)), acc, is_async=True)
            acc = warpgroup_mma_wait(1, deps=[more])
            # All but the products just begun are done: the slot before is free.
            mbarrier.arrive(empty.index(gl.where(slot == 0, stages, slot) - 1), count=1, pred=step > first)
            slot += 1
            phase = gl.where(slot == stages, phase ^ 1, phase)
            slot = gl.where(slot == stages, 0, slot)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(empty.index(gl.where(slot == 0, stages, slot) - 1), count=1)
        if most_parts == 1 or last - first == steps:
            row = tile % tiles_m * (groups * tall) + group * tall
            _finish(acc, out, row + rows, tile // tiles_m * block_n + cols, m, n)
        else:
            edge = 2 * program + gl.where(first > 0, 0, 1)
            part = partial + (edge * groups + group).to(gl.int64) * floats
            place = rows[:, None] * block_n + cols[None, :]
            gl.store(part + place, acc)
            barrier()  # every thread's sums are written before one thread says so
            gl.atomic_add(arrivals + tile * groups + group, 1, sem="release")
    gdc_launch_dependents()  # earlier, the next kernel's fetches would compete with this one's
    if most_parts > 1:
        for turn in range(2):
            tile = gl.where(turn == 0, start // steps, (end - 1) // steps)
            shared = (tile * steps < start) | (tile * steps + steps > end)
            if shared & ((turn == 0) | (tile != start // steps)):
                _add_parts(
                    out, partial, arrivals, m, n, steps, tiles_m, budget, program, tile,
                    group, groups, tall, block_n, most_parts,
                )  # fmt: skip


@jit
def _add_parts(  # type: ignore[no-untyped-def]
    out, partial, arrivals, m, n, steps, tiles_m, budget, program, tile,
    group: gl.constexpr, groups: gl.constexpr, tall: gl.constexpr, block_n: gl.constexpr, most_parts: gl.constexpr,
):  # fmt: skip
    """Wait for the same group of all programs that share `tile`, then finish this program's turns of its rows."""
    across: gl.constexpr = min(32, block_n // 4)
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [32 // across, across], [4, 1], [1, 0])
    floats: gl.constexpr = tall * block_n
    begin = tile * steps
    lead = begin // budget
    parts = (begin + steps - 1) // budget - lead + 1
    counter = arrivals + tile * groups + group
    seen = gl.atomic_add(counter, 0, sem="acquire")
    while seen < parts:
        seen = gl.atomic_add(counter, 0, sem="acquire")
    cols = gl.arange(0, block_n, gl.SliceLayout(0, layout))
    for turn in range(program - lead, tall // _SUM_ROWS, parts):
        rows = turn * _SUM_ROWS + gl.arange(0, _SUM_ROWS, gl.SliceLayout(1, layout))
        place = rows[:, None] * block_n + cols[None, :]
        acc = gl.zeros((_SUM_ROWS, block_n), gl.float32, layout)
        for one in gl.static_range(most_parts):
            edge = 2 * (lead + one) + gl.where((lead + one) * budget > begin, 0, 1)
            part = partial + (edge * groups + group).to(gl.int64) * floats + place
            left = place * 0 + one < parts
            acc += gl.load(part, mask=left, other=0.0, cache_modifier=".cg")
        row = tile % tiles_m * (groups * tall) + group * tall
        _finish(acc, out, row + rows, tile // tiles_m * block_n + cols, m, n)
    barrier()
    # Each part counts twice, when written and when added: the last to add leaves zero for the next call.
    if gl.atomic_add(counter, 1, sem="acq_rel") == 2 * parts - 1:
        gl.store(counter, 0)


@jit_once("m", "n", "steps", "tiles_m", "total", "budget", "skew")
def _stream(  # type: ignore[no-untyped-def]
    x, weight, out, partial, arrivals, m, n, steps, tiles_m, total, budget, skew,
    groups: gl.constexpr, tall: gl.constexpr, block_n: gl.constexpr, block_k: gl.constexpr,
    stages: gl.constexpr, most_parts: gl.constexpr,
):  # fmt: skip
    program = gl.program_id(0)
    start = program * budget
    end = gl.minimum(start + budget, total)
    xs = gl.allocate_shared_memory(gl.bfloat16, [stages * groups, tall, block_k], x.layout)
    ws = gl.allocate_shared_memory(gl.bfloat16, [stages, block_n, block_k], weight.layout)
    full = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(stages):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=groups)
    fence_async_shared()
    # Only in a call's own brackets do constants stay constants; hence the repetition.
    g0: gl.constexpr = 0
    g1: gl.constexpr = 1
    g2: gl.constexpr = 2
    if groups == 1:
        gl.warp_specialize([
        (_multiply, (out, partial, arrivals, xs, ws, full, empty, m, n, steps, tiles_m, budget, program,
                     start, end, g0, groups, tall, block_n, stages, most_parts)),
        (_fetch, (x, weight, xs, ws, full, empty, steps, tiles_m, skew, start, end,
                  groups, tall, block_n, block_k, stages)),
        ], [1], [40])  # fmt: skip
    elif groups == 2:
        gl.warp_specialize([
        (_multiply, (out, partial, arrivals, xs, ws, full, empty, m, n, steps, tiles_m, budget, program,
                     start, end, g0, groups, tall, block_n, stages, most_parts)),
        (_multiply, (out, partial, arrivals, xs, ws, full, empty, m, n, steps, tiles_m, budget, program,
                     start, end, g1, groups, tall, block_n, stages, most_parts)),
        (_fetch, (x, weight, xs, ws, full, empty, steps, tiles_m, skew, start, end,
                  groups, tall, block_n, block_k, stages)),
        ], [4, 1], [232, 40])  # fmt: skip
    else:
        gl.warp_specialize([
        (_multiply, (out, partial, arrivals, xs, ws, full, empty, m, n, steps, tiles_m, budget, program,
                     start, end, g0, groups, tall, block_n, stages, most_parts)),
        (_multiply, (out, partial, arrivals, xs, ws, full, empty, m, n, steps, tiles_m, budget, program,
                     start, end, g1, groups, tall, block_n, stages, most_parts)),
        (_multiply, (out, partial, arrivals, xs, ws, full, empty, m, n, steps, tiles_m, budget, program,
                     start, end, g2, groups, tall, block_n, stages, most_parts)),
        (_fetch, (x, weight, xs, ws, full, empty, steps, tiles_m, skew, start, end,
                  groups, tall, block_n, block_k, stages)),
        ], [4, 4, 1], [152, 152, 40])  # fmt: skip


def launch(
    x: Tensor, weight: Tensor, out: Tensor, partial: Tensor, arrivals: Tensor, plan: StreamPlan, choice: GemmChoice
) -> None:  # fmt: skip
    """As `triton_stream_k._stream`. choice.warps: four for each group; they divide choice.block_m's rows."""
    groups = choice.warps // 4
    tall = choice.block_m // groups
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    _stream[(plan.programs,)](
        TensorDescriptor.from_tensor(x, [tall, choice.block_k], layout),
        TensorDescriptor.from_tensor(weight, [choice.block_n, choice.block_k], layout),
        out, partial, arrivals, x.shape[0], out.shape[1],
        plan.steps, plan.tiles_m, plan.total, plan.budget, choice.skew % plan.steps,
        groups, tall, choice.block_n, choice.block_k, choice.stages, plan.most_parts,
        num_warps=4, launch_pdl=True,
    )  # fmt: skip
