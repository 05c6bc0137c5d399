"""Decode attention over the paged cache: one query token per request, all query heads of a key/value head together.

A worker walks its share of the tiles (`triton_decode_plan.py`). A request that lies inside one share is written at once;
a request cut into pieces leaves (sum, maximum, weight) of each piece in a workspace, and whichever worker finishes last
merges them, always in the order of the pieces, so that results do not depend on timing. Not for several query tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadLayout
from shoal_engine.kernels.triton_decode_plan import DecodePlan, plan_step
from shoal_engine.kernels.triton_jit import jit, jit_once
from shoal_engine.kernels.triton_prefix import attend_prefixes, find_shared
from shoal_engine.kernels.triton_walk import LOG2_E as LOG2_E  # also of those who merge pieces
from shoal_engine.kernels.triton_walk import log2_factors, sink_logits, walk_tiles

MERGED_ELEMENTS = 2048  # of partial sums in the registers of a warp at once


@dataclass(frozen=True, slots=True)
class DecodeTiling:
    """programs: workers times key/value heads, about; an H200 has 132 processors and needs several programs on each.

    prefix_tokens: of a shared prefix that are taken at once, by many more rows; whole tiles.

    On Hopper for steps that compute prompts too, shared prefixes, softcap and sinks; the rest is `gluon_decode.py`'s.
    Small programs, eight on a processor, hide each other's waits: on an H200 at context 577 and 1 / 8 / 32 / 128 / 256
    requests 8.1 / 12.5 / 31.7 / 82.5 / 160 us, against 9.7 / 15.1 / 34 / 85 / 160 with tiles of 64, two warps and 528.
    """

    tile_tokens: int = 32
    warps: int = 1
    stages: int = 3
    programs: int = 1056
    prefix_tokens: int = 64

    def workers(self, layout: HeadLayout) -> int:
        return max(1, self.programs // layout.num_kv_heads)

    def max_pieces(self, layout: HeadLayout) -> int:
        """More pieces mean more parallelism for a single long request, and a longer merge."""
        return int(max(32, min(128, triton.next_power_of_2(256 // layout.num_kv_heads))))


@dataclass(frozen=True, slots=True)
class DecodeWorkspace:
    """Pieces of cut requests. A worker has at most two: one it continues and one it begins. Sized by workers, not requests.

    sums [workers*2, kv_heads, group, D], stats [workers*2, kv_heads, 2, group] (maximum, weight) float32;
    arrivals [workers, kv_heads] int32, zero between launches, counts the pieces of the request that begins in a worker.
    """

    sums: Tensor
    stats: Tensor
    arrivals: Tensor

    @classmethod
    def allocate(cls, workers: int, layout: HeadLayout, device: torch.device) -> DecodeWorkspace:
        heads, group = layout.num_kv_heads, layout.num_heads // layout.num_kv_heads
        return cls(
            sums=torch.empty(2 * workers, heads, group, layout.head_dim, device=device),
            stats=torch.empty(2 * workers, heads, 2, group, device=device),
            arrivals=torch.zeros(workers, heads, dtype=torch.int32, device=device),
        )


@jit
def _merge_pieces(
    sums: tl.tensor,
    stats: tl.tensor,
    first_worker: tl.tensor,
    pieces: tl.tensor,
    head: tl.tensor,
    target: tl.tensor,
    num_kv_heads: tl.constexpr,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    group_block: tl.constexpr,
    dim_block: tl.constexpr,
    max_pieces: tl.constexpr,
    piece_block: tl.constexpr,
) -> None:
    """Read past the first-level cache (.cg): other processors wrote these."""
    rows, dims = tl.arange(0, group_block), tl.arange(0, dim_block)
    piece = tl.arange(0, max_pieces)
    slot = 2 * (first_worker + piece) + (piece == 0)
    at = (slot * num_kv_heads + head)[:, None] * (2 * group) + rows[None, :]
    there = (piece < pieces)[:, None] & (rows < group)[None, :]
    tops = tl.load(stats + at, mask=there, other=float("-inf"), cache_modifier=".cg")
    weights = tl.load(stats + at + group, mask=there, other=0.0, cache_modifier=".cg")
    top = tl.max(tops, 0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.sum(tl.exp2(tops - shift[None, :]) * weights, 0)
    merged = tl.zeros((group_block, dim_block), tl.float32)
    for begin in range(0, pieces, piece_block):
        some = begin + tl.arange(0, piece_block)
        row = (2 * (first_worker + some) + (some == 0)) * num_kv_heads + head
        real = (some < pieces)[:, None] & (rows < group)[None, :]
        some_tops = stats + row[:, None] * (2 * group) + rows[None, :]
        factor = tl.exp2(
            tl.load(some_tops, mask=real, other=float("-inf"), cache_modifier=".cg") - shift[None, :]
        )
        part_at = (row[:, None, None] * group + rows[None, :, None]) * head_dim + dims[None, None, :]
        part_kept = real[:, :, None] & (dims < head_dim)[None, None, :]
        part = tl.load(sums + part_at, mask=part_kept, other=0.0, cache_modifier=".cg")
        merged += tl.sum(part * factor[:, :, None], 0)
    merged = merged / tl.where(weight == 0.0, 1.0, weight)[:, None]
    kept = (rows < group)[:, None] & (dims < head_dim)[None, :]
    at = rows[:, None] * head_dim + dims[None, :]
    tl.store(target + at, merged.to(target.dtype.element_ty), mask=kept)


@jit
def _take_prefix(
    state: tl.tensor,
    prefix_sums: tl.tensor,
    prefix_stats: tl.tensor,
    request_head: tl.tensor,
    parts: tl.tensor,
    splits: tl.constexpr,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    row_block: tl.constexpr,
    dim_block: tl.constexpr,
) -> tl.tensor:
    """Add the parts of a shared prefix (`triton_prefix.py`) to (sums, maxima, weights) of a request that begins."""
    sums, top, weight = state
    rows, dims = tl.arange(0, row_block), tl.arange(0, dim_block)
    kept = (rows < group)[:, None] & (dims < head_dim)[None, :]
    for part in range(0, parts):
        row = (request_head * splits + part) * group + rows
        stats = prefix_stats + (request_head * splits + part) * (2 * group) + rows
        part_top = tl.load(stats, mask=rows < group, other=float("-inf"))
        part_weight = tl.load(stats + group, mask=rows < group, other=0.0)
        part_sums = tl.load(prefix_sums + row[:, None] * head_dim + dims[None, :], mask=kept, other=0.0)
        new_top = tl.maximum(top, part_top)
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        fade, part_fade = tl.exp2(top - shift), tl.exp2(part_top - shift)
        weight = weight * fade + part_weight * part_fade
        sums = sums * fade[:, None] + part_sums * part_fade[:, None]
        top = new_top
    return sums, top, weight


@jit_once("tables", "context_lens", "table_stride", "window")
def _decode_kernel(
    q: tl.tensor,
    cache: tl.tensor,
    tables: tl.tensor,
    context_lens: tl.tensor,
    line: tl.tensor,
    piece_sums: tl.tensor,
    piece_stats: tl.tensor,
    arrivals: tl.tensor,
    sinks: tl.tensor,
    prefix_steps: tl.tensor,
    prefix_sums: tl.tensor,
    prefix_stats: tl.tensor,
    out: tl.tensor,
    block_stride: tl.tensor,
    table_stride: tl.tensor,
    scale_log2: tl.tensor,
    cap_log2: tl.tensor,
    window: tl.tensor,
    has_cap: tl.constexpr,
    has_sinks: tl.constexpr,
    prefix_splits: tl.constexpr,
    step_tiles: tl.constexpr,
    workers: tl.constexpr,
    num_kv_heads: tl.constexpr,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    block_tokens: tl.constexpr,
    row_block: tl.constexpr,
    group_block: tl.constexpr,
    dim_block: tl.constexpr,
    tile_tokens: tl.constexpr,
    max_pieces: tl.constexpr,
    piece_block: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    head, worker = tl.program_id(0), tl.program_id(1)
    share = tl.load(line)
    tile = worker * share
    last_tile = tl.minimum(tile + share, tl.load(line + 1))
    request = tl.load(line + 2 + worker)
    starts = line + 2 + workers
    rows, dims = tl.arange(0, row_block), tl.arange(0, dim_block)
    at = rows[:, None] * head_dim + dims[None, :]
    kept = (rows < group)[:, None] & (dims < head_dim)[None, :]
    keys = cache + head * (block_tokens * head_dim)
    while tile < last_tile:
        start, end = tl.load(starts + request), tl.load(starts + request + 1)
        stop = tl.minimum(last_tile, end)
        length = tl.load(context_lens + request)
        first_visible = tl.maximum(length - window, 0)
        first_tile = first_visible // tile_tokens
        if prefix_splits > 0:
            first_tile = tl.load(prefix_steps + request) * step_tiles
        from_token = (first_tile + tile - start) * tile_tokens
        to_token = tl.minimum(from_token + (stop - tile) * tile_tokens, length)
        offset = (request.to(tl.int64) * num_kv_heads + head) * (group * head_dim)
        queries = tl.load(q + offset + at, mask=kept, other=0.0)
        if cache.dtype.element_ty.is_fp8():
            queries = queries.to(tl.float16)
        sums = tl.zeros((row_block, dim_block), tl.float32)
        top = tl.full((row_block,), float("-inf"), tl.float32)
        if has_sinks:
            top = sink_logits(sinks, head * group + rows, rows < tl.where(tile == start, group, 0))
        weight = tl.where(top == float("-inf"), 0.0, 1.0)
        if prefix_splits > 0:
            sums, top, weight = _take_prefix(
                (sums, top, weight), prefix_sums, prefix_stats, (request * num_kv_heads + head).to(tl.int64),
                tl.where(tile == start, tl.minimum(first_tile // step_tiles, prefix_splits), 0),
                prefix_splits, group, head_dim, row_block, dim_block,
            )  # fmt: skip
        sums, top, weight = walk_tiles(
            (sums, top, weight), queries, keys, tables + request.to(tl.int64) * table_stride, block_stride,
            num_kv_heads * block_tokens * head_dim, from_token, to_token, first_visible, scale_log2, cap_log2, has_cap,
            head_dim, block_tokens, dim_block, tile_tokens, precision,
        )  # fmt: skip
        first_worker = start // share
        pieces = (end - 1) // share - first_worker + 1
        if pieces == 1:
            result = sums / tl.where(weight == 0.0, 1.0, weight)[:, None]
            tl.store(out + offset + at, result.to(out.dtype.element_ty), mask=kept)
        else:
            slot = (2 * worker + (worker == first_worker)) * num_kv_heads + head
            tl.store(piece_sums + slot * (group * head_dim) + at, sums, mask=kept)
            stats = piece_stats + slot * (2 * group) + rows
            tl.store(stats, top, mask=rows < group)
            tl.store(stats + group, weight, mask=rows < group)
            tl.debug_barrier()  # all threads' stores come before the one thread's release below
            counter = arrivals + first_worker * num_kv_heads + head
            if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == pieces - 1:
                _merge_pieces(
                    piece_sums, piece_stats, first_worker, pieces, head, out + offset,
                    num_kv_heads, group, head_dim, group_block, dim_block, max_pieces, piece_block,
                )  # fmt: skip
                tl.store(counter, 0)
        tile = stop
        request += 1


def attend_decodes(
    q: Tensor,
    layout: HeadLayout,
    batch: AttentionBatch,
    cache: Tensor,
    scale: AttentionScale,
    plan: DecodePlan,
    workspace: DecodeWorkspace,
    tiling: DecodeTiling,
    out: Tensor,
) -> None:
    """Rows :num_decodes of out [T, num_heads*D] from those of q [T, num_heads, D]; a request without tokens gets zeros."""
    group = layout.num_heads // layout.num_kv_heads
    group_block, dim_block = triton.next_power_of_2(group), max(16, triton.next_power_of_2(layout.head_dim))
    scale_log2, cap_log2 = log2_factors(scale)
    shared, unused = plan.shared, batch.context_lens
    prefix = attend_prefixes(q, layout, batch, cache, scale, shared) if shared else None
    _decode_kernel[(layout.num_kv_heads, plan.workers)](
        q, cache, batch.tables, batch.context_lens, plan.line, workspace.sums, workspace.stats, workspace.arrivals,
        unused if scale.sinks is None else scale.sinks, shared.steps if shared else unused,
        prefix.sums if prefix else unused, prefix.stats if prefix else unused,
        out, cache.stride(0), batch.tables.stride(0), scale_log2, cap_log2, scale.window or 2**30,
        has_cap=scale.softcap is not None, has_sinks=scale.sinks is not None,
        prefix_splits=shared.splits if shared else 0,
        step_tiles=shared.step_tokens // plan.tile_tokens if shared else 1,
        workers=plan.workers, num_kv_heads=layout.num_kv_heads, group=group, head_dim=layout.head_dim,
        block_tokens=batch.block_tokens, row_block=max(16, group_block), group_block=group_block,
        dim_block=dim_block, tile_tokens=plan.tile_tokens, max_pieces=plan.max_pieces,
        piece_block=max(1, min(plan.max_pieces, tiling.warps * MERGED_ELEMENTS // (group_block * dim_block))),
        precision="ieee" if q.dtype == torch.float32 else "tf32", num_warps=tiling.warps, num_stages=tiling.stages,
    )  # fmt: skip


def tiling_for(layout: HeadLayout, dtype: torch.dtype) -> DecodeTiling:
    """Wider rows make shorter tiles: three stages of keys and values must fit the shared memory."""
    row_bytes = triton.next_power_of_2(layout.head_dim) * dtype.itemsize
    tile_tokens = int(min(32, max(16, 32 * 256 // row_bytes)))
    return DecodeTiling(tile_tokens, warps=1 if layout.head_dim <= 128 else 2)


def plan_for(
    batch: AttentionBatch, layout: HeadLayout, scale: AttentionScale, tiling: DecodeTiling
) -> DecodePlan:
    """The plan of all layers of one step that share `layout` and `scale`."""
    shares = batch.shares_prefixes and scale.window is None
    shared = find_shared(batch, layout, max(tiling.prefix_tokens, tiling.tile_tokens)) if shares else None
    return plan_step(batch, layout, scale.window, tiling, shared)
