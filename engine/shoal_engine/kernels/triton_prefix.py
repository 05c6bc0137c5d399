"""What neighbouring decodes have in common is read once for all of them: keys and values of a shared prefix.

Requests of one window of the batch (`SharedPrefix.window_requests` neighbours) whose tables begin with the same blocks
form a run. All queries of a run are rows of one product with each tile of the common prefix; the partial sums of every
request are where `triton_decode.py` begins its walk over the rest. Runs are found on the device, once a step, and no
grid depends on what is found, so that a CUDA graph holds for any batch. Not for sliding windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadLayout
from shoal_engine.kernels.triton_jit import jit_once
from shoal_engine.kernels.triton_walk import log2_factors, walk_tiles

ROWS = 64  # (request, head) pairs of one key/value head in a program, one wgmma high
LEAST_STEPS = 4  # of a prefix that is worth it
PROGRAMS = 264  # that a device runs at once: a prefix is split until there are about as many
MANY_SPLITS, FEW_SPLITS = 16, 4
COLUMNS_PER_PASS = 64  # of the tables


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """steps [R] int32: of request r's prefix that its run shares, or 0; members [R] int32: requests of its run.

    A step is `step_tokens` tokens, which the walk takes at once.
    """

    steps: Tensor
    members: Tensor
    window_requests: int
    step_tokens: int
    splits: int


@dataclass(frozen=True, slots=True)
class PrefixSums:
    """sums [R, kv_heads, splits, group, D], stats [R, kv_heads, splits, 2, group] (maximum, weight) float32.

    Of request r the first min(steps[r], splits) parts are filled.
    """

    sums: Tensor
    stats: Tensor


@jit_once("tables", "context_lens", "table_stride", "num_requests")
def _find_kernel(
    tables: tl.tensor,
    context_lens: tl.tensor,
    common: tl.tensor,
    prefix_steps: tl.tensor,
    members: tl.tensor,
    table_stride: tl.tensor,
    num_requests: tl.tensor,
    window_requests: tl.constexpr,
    request_block: tl.constexpr,
    block_tokens: tl.constexpr,
    step_tokens: tl.constexpr,
    least_steps: tl.constexpr,
    column_block: tl.constexpr,
) -> None:
    index = tl.arange(0, request_block)
    request = tl.program_id(0) * window_requests + index
    real = (index < window_requests) & (request < num_requests)
    follows = real & (index > 0)
    length = tl.load(context_lens + request, mask=follows, other=0)
    length = tl.minimum(length, tl.load(context_lens + request - 1, mask=follows, other=0))
    blocks = length // block_tokens
    row = tables + request.to(tl.int64) * table_stride
    same, begin, end = blocks, 0, tl.max(blocks, 0)
    while begin < end:
        column = begin + tl.arange(0, column_block)
        inside = column[None, :] < blocks[:, None]
        mine = tl.load(row[:, None] + column[None, :], mask=inside, other=0)
        before = tl.load(row[:, None] - table_stride + column[None, :], mask=inside, other=0)
        differs = tl.where(inside & (mine != before), column[None, :], 2147483647)
        same = tl.minimum(same, tl.min(differs, 1))
        begin += column_block
        end = tl.max(tl.where(same >= begin, blocks, 0), 0)  # of those that have not differed yet
    steps = same * block_tokens // step_tokens
    tl.store(common + request, steps, mask=real)
    tl.debug_barrier()  # a neighbour's thread reads it
    has_next = real & (index + 1 < window_requests) & (request + 1 < num_requests)
    after = tl.load(common + request + 1, mask=has_next, other=0)
    # It begins a run if it has less in common with the one before than with the next.
    begins = (steps < least_steps) | (2 * steps < after)
    run = tl.cumsum(begins.to(tl.int32), 0)
    tl.debug_barrier()
    tl.store(common + request, run * 2 + begins.to(tl.int32), mask=real)
    tl.store(members + request, steps, mask=real)
    tl.debug_barrier()
    other = tl.arange(0, request_block)
    other_request = tl.program_id(0) * window_requests + other
    other_real = (other < window_requests) & (other_request < num_requests)
    other_run = tl.load(common + other_request, mask=other_real, other=-2)
    other_steps = tl.load(members + other_request, mask=other_real, other=0)
    together = (other_run // 2)[None, :] == run[:, None]
    inner = together & (other_run % 2 == 0)[None, :]
    count = tl.sum(together.to(tl.int32), 1)
    least = tl.min(tl.where(inner, other_steps[None, :], 2147483647), 1)
    tl.debug_barrier()  # all have read `members` as steps
    tl.store(members + request, count, mask=real)
    tl.store(prefix_steps + request, tl.where(count > 1, least, 0), mask=real)


@jit_once("tables", "table_stride", "num_requests")
def _prefix_kernel(
    q: tl.tensor,
    cache: tl.tensor,
    tables: tl.tensor,
    prefix_steps: tl.tensor,
    members: tl.tensor,
    prefix_sums: tl.tensor,
    prefix_stats: tl.tensor,
    block_stride: tl.tensor,
    scale_log2: tl.tensor,
    cap_log2: tl.tensor,
    table_stride: tl.tensor,
    num_requests: tl.tensor,
    has_cap: tl.constexpr,
    window_requests: tl.constexpr,
    num_kv_heads: tl.constexpr,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    block_tokens: tl.constexpr,
    row_block: tl.constexpr,
    dim_block: tl.constexpr,
    step_tokens: tl.constexpr,
    splits: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    head, split = tl.program_id(0), tl.program_id(2)
    request = tl.program_id(1) * window_requests
    end = tl.minimum(request + window_requests, num_requests)
    rows, dims = tl.arange(0, row_block), tl.arange(0, dim_block)
    keys = cache + head * (block_tokens * head_dim)
    while request < end:
        count, steps = tl.load(members + request), tl.load(prefix_steps + request)
        parts = tl.minimum(steps, splits)
        if split < parts:
            member = (request + rows // group).to(tl.int64) * num_kv_heads + head
            real = rows < count * group
            kept = real[:, None] & (dims < head_dim)[None, :]
            at = (member * group + rows % group)[:, None] * head_dim + dims[None, :]
            queries = tl.load(q + at, mask=kept, other=0.0)
            if cache.dtype.element_ty.is_fp8():
                queries = queries.to(tl.float16)
            from_token = split * steps // parts * step_tokens
            to_token = (split + 1) * steps // parts * step_tokens
            state = (
                tl.zeros((row_block, dim_block), tl.float32),
                tl.full((row_block,), float("-inf"), tl.float32),
                tl.zeros((row_block,), tl.float32),
            )
            sums, top, weight = walk_tiles(
                state, queries, keys, tables + request.to(tl.int64) * table_stride, block_stride,
                num_kv_heads * block_tokens * head_dim, from_token, to_token, 0, scale_log2, cap_log2, has_cap,
                head_dim, block_tokens, dim_block, step_tokens, precision,
            )  # fmt: skip
            part = (member * splits + split) * group + rows % group
            tl.store(prefix_sums + part[:, None] * head_dim + dims[None, :], sums, mask=kept)
            stats = prefix_stats + (member * splits + split) * (2 * group) + rows % group
            tl.store(stats, top, mask=real)
            tl.store(stats + group, weight, mask=real)
        request += count


def find_shared(batch: AttentionBatch, layout: HeadLayout, step_tokens: int) -> SharedPrefix:
    """The runs among the decodes of a step, for all layers of this layout."""
    requests, device = batch.num_decodes, batch.context_lens.device
    window_requests = max(1, ROWS // (layout.num_heads // layout.num_kv_heads))
    common, steps, members = (torch.empty(requests, dtype=torch.int32, device=device) for _ in range(3))
    _find_kernel[(triton.cdiv(requests, window_requests),)](
        batch.tables, batch.context_lens, common, steps, members, batch.tables.stride(0), requests,
        window_requests=window_requests, request_block=triton.next_power_of_2(window_requests),
        block_tokens=batch.block_tokens, step_tokens=step_tokens, least_steps=LEAST_STEPS,
        column_block=COLUMNS_PER_PASS, num_warps=4,
    )  # fmt: skip
    splits = splits_for(layout.num_kv_heads * triton.cdiv(requests, window_requests))
    return SharedPrefix(steps, members, window_requests, step_tokens, splits)


def splits_for(programs: int) -> int:
    """Into how many parts a prefix is cut, for so many programs if it were not: one of two, so that two kernels serve all
    batches and both can be compiled before the first request.
    """
    return MANY_SPLITS if programs * MANY_SPLITS <= 2 * PROGRAMS else FEW_SPLITS


def attend_prefixes(
    q: Tensor,
    layout: HeadLayout,
    batch: AttentionBatch,
    cache: Tensor,
    scale: AttentionScale,
    shared: SharedPrefix,
) -> PrefixSums:
    """The partial sums of every request over the prefix that it shares."""
    requests, heads, group = batch.num_decodes, layout.num_kv_heads, layout.num_heads // layout.num_kv_heads
    sums = torch.empty(requests, heads, shared.splits, group, layout.head_dim, device=q.device)
    stats = torch.empty(requests, heads, shared.splits, 2, group, device=q.device)
    scale_log2, cap_log2 = log2_factors(scale)
    _prefix_kernel[(heads, triton.cdiv(requests, shared.window_requests), shared.splits)](
        q, cache, batch.tables, shared.steps, shared.members, sums, stats, cache.stride(0), scale_log2, cap_log2,
        batch.tables.stride(0), requests, has_cap=scale.softcap is not None,
        window_requests=shared.window_requests, num_kv_heads=heads, group=group, head_dim=layout.head_dim,
        block_tokens=batch.block_tokens, row_block=max(16, triton.next_power_of_2(shared.window_requests * group)),
        dim_block=max(16, triton.next_power_of_2(layout.head_dim)), step_tokens=shared.step_tokens,
        splits=shared.splits, precision="ieee" if q.dtype == torch.float32 else "tf32", num_warps=4, num_stages=3,
    )  # fmt: skip
    return PrefixSums(sums, stats)
