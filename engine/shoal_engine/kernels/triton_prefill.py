"""Prefill attention over the paged cache: many query tokens per request, with or without cached tokens before them.

A program takes BLOCK_M rows, which are (query, head) pairs of one request: the query heads that share a key/value head
stand together, so that a short chunk still fills the tensor cores (wgmma wants 64 rows) and less of the diagonal is
wasted. It walks the tiles of keys in three stretches: cut by the window, wholly visible, cut by the diagonal; only the
outer two pay for a mask. No splitting along the keys: that is decode's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadLayout
from shoal_engine.kernels.triton_jit import jit, jit_once
from shoal_engine.kernels.triton_walk import capped, log2_factors, sink_logits

REQUESTS_PER_PASS = 64  # that a program looks through at once for its own


@dataclass(frozen=True, slots=True)
class PrefillTiling:
    """block_m rows of (query, head) against block_n tokens."""

    block_m: int = 128
    block_n: int = 128
    warps: int = 8
    stages: int = 3


SHORT_TILING = PrefillTiling(64, 64, 4, 3)  # chunks that would leave half of a tall tile empty
WIDE_TILING = PrefillTiling(64, 64, 4, 2)  # heads of 256
FLOAT32_TILING = PrefillTiling(64, 32, 4, 2)  # twice the bytes in shared memory


@jit
def _walk_tiles(
    state: tl.tensor,
    queries: tl.tensor,
    position: tl.tensor,
    keys: tl.tensor,
    table: tl.tensor,
    block_stride: tl.tensor,
    from_tile: tl.tensor,
    to_tile: tl.tensor,
    length: tl.tensor,
    scale_log2: tl.tensor,
    cap_log2: tl.tensor,
    window: tl.tensor,
    masked: tl.constexpr,
    has_window: tl.constexpr,
    has_cap: tl.constexpr,
    side_stride: tl.constexpr,
    head_dim: tl.constexpr,
    block_tokens: tl.constexpr,
    dim_block: tl.constexpr,
    block_n: tl.constexpr,
    precision: tl.constexpr,
) -> tl.tensor:
    """Carry (sums [M, D], maxima [M], weights [M]) over the tiles from_tile..to_tile of one request."""
    sums, top, weight = state
    dims = tl.arange(0, dim_block)
    for tile in range(from_tile, to_tile):
        token = tile * block_n + tl.arange(0, block_n)
        if block_tokens % block_n == 0:
            page = tl.load(table + tile * block_n // block_tokens).to(tl.int64)
        elif masked:
            page = tl.load(table + token // block_tokens, mask=token < length, other=0).to(tl.int64)
        else:
            page = tl.load(table + token // block_tokens).to(tl.int64)
        at = (page * block_stride + (token % block_tokens) * head_dim)[:, None] + dims[None, :]
        if masked:
            kept = (token < length)[:, None] & (dims < head_dim)[None, :]
            key = tl.load(keys + at, mask=kept, other=0.0)
            value = tl.load(keys + side_stride + at, mask=kept, other=0.0)
        elif dim_block == head_dim:
            key = tl.load(keys + at)
            value = tl.load(keys + side_stride + at)
        else:
            key = tl.load(keys + at, mask=dims[None, :] < head_dim, other=0.0)
            value = tl.load(keys + side_stride + at, mask=dims[None, :] < head_dim, other=0.0)
        key, value = key.to(queries.dtype), value.to(queries.dtype)
        scores = tl.dot(queries, tl.trans(key), input_precision=precision)
        if has_cap:
            scores, factor = capped(scores, scale_log2, cap_log2), 1.0
        else:
            factor = scale_log2
        if masked:
            visible = token[None, :] <= position[:, None]
            if has_window:
                visible = visible & (token[None, :] > position[:, None] - window)
            scores = tl.where(visible, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * factor)
        shift = new_top
        if has_window:  # a row may have seen no visible token yet
            shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        shares = tl.exp2(scores * factor - shift[:, None])
        fade = tl.exp2(top - shift)
        weight = weight * fade + tl.sum(shares, 1)
        sums = sums * fade[:, None]
        sums = tl.dot(shares.to(value.dtype), value, sums, input_precision=precision)
        top = new_top
    return sums, top, weight


@jit
def _find_request(
    query_start: tl.tensor,
    index: tl.tensor,
    first_request: tl.tensor,
    num_requests: tl.tensor,
    block_q: tl.constexpr,
    request_block: tl.constexpr,
) -> tl.tensor:
    """The request that owns block `index` of queries, and the first block it may own.

    Request r begins at block query_start[r] // block_q + r, counted from the first prefill: a numbering with gaps of at
    most one block a request, which needs no prefix sum.
    """
    origin = tl.load(query_start + first_request)
    found = first_request
    for begin in range(first_request + 1, num_requests, request_block):
        request = begin + tl.arange(0, request_block)
        start = tl.load(query_start + request, mask=request < num_requests, other=2147483647)
        block = (start - origin) // block_q + request - first_request
        found += tl.sum(((block <= index) & (request < num_requests)).to(tl.int32), 0)
    first_block = (tl.load(query_start + found) - origin) // block_q + found - first_request
    return found, first_block


@jit_once(
    "tables",
    "context_lens",
    "query_start",
    "first_rows",
    "table_stride",
    "first_request",
    "num_requests",
    "window",
)
def _prefill_kernel(
    q: tl.tensor,
    cache: tl.tensor,
    tables: tl.tensor,
    context_lens: tl.tensor,
    query_start: tl.tensor,
    first_rows: tl.tensor,
    sinks: tl.tensor,
    out: tl.tensor,
    block_stride: tl.tensor,
    table_stride: tl.tensor,
    scale_log2: tl.tensor,
    cap_log2: tl.tensor,
    window: tl.tensor,
    first_request: tl.tensor,
    num_requests: tl.tensor,
    num_kv_heads: tl.constexpr,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    block_tokens: tl.constexpr,
    dim_block: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    has_window: tl.constexpr,
    has_cap: tl.constexpr,
    has_sinks: tl.constexpr,
    precision: tl.constexpr,
    request_block: tl.constexpr,
) -> None:
    block_q: tl.constexpr = block_m // group
    head = tl.program_id(0)
    index = tl.num_programs(1) - 1 - tl.program_id(1)  # late blocks see the most tokens: begin with them
    request, first_block = _find_request(
        query_start, index, first_request, num_requests, block_q, request_block
    )
    start, end = tl.load(first_rows + request), tl.load(query_start + request + 1)
    first_query = (index - first_block) * block_q
    if first_query < end - start:
        rows, dims = tl.arange(0, block_m), tl.arange(0, dim_block)
        query = first_query + rows // group
        real = (rows < block_q * group) & (query < end - start)
        row = ((start + query).to(tl.int64) * num_kv_heads + head) * group + rows % group
        at = row[:, None] * head_dim + dims[None, :]
        kept = real[:, None] & (dims < head_dim)[None, :]
        queries = tl.load(q + at, mask=kept, other=0.0)
        if cache.dtype.element_ty.is_fp8():
            queries = queries.to(tl.float16)
        length = tl.load(context_lens + request)
        cached = length - (end - start)
        position = cached + query
        first_position = cached + first_query
        last_position = tl.minimum(first_position + block_q, length) - 1
        to_tile = last_position // block_n + 1
        from_tile = tl.maximum(first_position - window + 1, 0) // block_n
        # The tiles before `whole` are cut by the window of the last query, those from `diagonal` by that of causality.
        whole = tl.minimum(tl.maximum(last_position - window + 1 + block_n - 1, 0) // block_n, to_tile)
        diagonal = tl.maximum(whole, (first_position + 1) // block_n)
        keys = cache + head * (block_tokens * head_dim)
        table = tables + request.to(tl.int64) * table_stride
        side_stride: tl.constexpr = num_kv_heads * block_tokens * head_dim
        top, weight = tl.full((block_m,), float("-inf"), tl.float32), tl.zeros((block_m,), tl.float32)
        if has_sinks:
            top = sink_logits(sinks, head * group + rows % group, real)
            weight = tl.where(real, 1.0, 0.0)
        state = (tl.zeros((block_m, dim_block), tl.float32), top, weight)
        if has_window:
            state = _walk_tiles(
                state, queries, position, keys, table, block_stride, from_tile, whole, length, scale_log2, cap_log2,
                window, True, has_window, has_cap, side_stride, head_dim, block_tokens, dim_block, block_n, precision,
            )  # fmt: skip
        state = _walk_tiles(
            state, queries, position, keys, table, block_stride, whole, diagonal, length, scale_log2, cap_log2,
            window, False, has_window, has_cap, side_stride, head_dim, block_tokens, dim_block, block_n, precision,
        )  # fmt: skip
        sums, top, weight = _walk_tiles(
            state, queries, position, keys, table, block_stride, diagonal, to_tile, length, scale_log2, cap_log2,
            window, True, has_window, has_cap, side_stride, head_dim, block_tokens, dim_block, block_n, precision,
        )  # fmt: skip
        weight = tl.where(weight == 0.0, 1.0, weight)  # only of rows that are not real
        tl.store(out + at, (sums / weight[:, None]).to(out.dtype.element_ty), mask=kept)


def attend_prefills(
    q: Tensor,
    layout: HeadLayout,
    batch: AttentionBatch,
    cache: Tensor,
    scale: AttentionScale,
    tiling: PrefillTiling,
    out: Tensor,
    first_rows: Tensor | None = None,
) -> None:
    """The rows of out [T, num_heads*D] that belong to requests num_decodes:; rows of no request are left as they are.

    first_rows [R] int32: where each request's work begins, if not at its first row (query_start).
    """
    group = layout.num_heads // layout.num_kv_heads
    scale_log2, cap_log2 = log2_factors(scale)
    block_m = max(tiling.block_m, triton.next_power_of_2(group))
    block_q = block_m // group
    blocks = (q.shape[0] - batch.num_decodes) // block_q + batch.num_requests - batch.num_decodes
    _prefill_kernel[(layout.num_kv_heads, blocks)](
        q, cache, batch.tables, batch.context_lens, batch.query_start,
        batch.query_start if first_rows is None else first_rows,
        batch.context_lens if scale.sinks is None else scale.sinks, out, cache.stride(0), batch.tables.stride(0),
        scale_log2, cap_log2, scale.window or 2**30, batch.num_decodes, batch.num_requests,
        num_kv_heads=layout.num_kv_heads, group=group, head_dim=layout.head_dim, block_tokens=batch.block_tokens,
        dim_block=max(16, triton.next_power_of_2(layout.head_dim)), block_m=block_m, block_n=tiling.block_n,
        has_window=scale.window is not None, has_cap=scale.softcap is not None, has_sinks=scale.sinks is not None,
        precision="ieee" if q.dtype == torch.float32 else "tf32",
        request_block=REQUESTS_PER_PASS, num_warps=tiling.warps, num_stages=tiling.stages,
    )  # fmt: skip


def tiling_for(layout: HeadLayout, batch: AttentionBatch, dtype: torch.dtype) -> PrefillTiling:
    """By the longest chunk of the batch, which the host knows."""
    if dtype == torch.float32:
        return FLOAT32_TILING
    if layout.head_dim > 128:
        return WIDE_TILING
    rows = batch.max_query_len * (layout.num_heads // layout.num_kv_heads)
    return SHORT_TILING if rows <= SHORT_TILING.block_m else PrefillTiling()
