"""Decode attention straight from a row of QKV: head norm, rotation, write of the new token, and the walk over its tiles.

The work is dealt by the plan of `triton_decode_plan.py`. Unlike in `triton_decode.py` the new token never passes through
the cache: the worker that has a request's last tile starts its sums with it and writes it. What is constant in the step,
the first tile of keys and values included, is loaded before the wait for QKV. On Hopper it is `gluon_decode.py` that runs.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from shoal_engine.kernels.fused_tiles import AttentionTile
from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadInput, HeadLayout
from shoal_engine.kernels.triton_decode import LOG2_E, DecodeWorkspace
from shoal_engine.kernels.triton_decode_plan import DecodePlan, worker_share, worker_span
from shoal_engine.kernels.triton_fused_heads import as_cached, rotated_heads, rotation
from shoal_engine.kernels.triton_fused_launch import INTERPRETED, launch_options, trigger, wait
from shoal_engine.kernels.triton_fused_merge import merge_pieces
from shoal_engine.kernels.triton_jit import jit, jit_once

_WIDEN = tl.constexpr(INTERPRETED)
_MERGED_ELEMENTS = 2048  # of the pieces of a cut request, in the registers of a warp at once


@jit
def _tile(  # type: ignore[no-untyped-def]
    side, table, begin, from_token, to_token, block_stride, head_dim: tl.constexpr, block_tokens: tl.constexpr,
    dim_block: tl.constexpr, tile_tokens: tl.constexpr, turned: tl.constexpr,
):  # fmt: skip
    """Keys [tile_tokens, D], or values turned to [D, tile_tokens], from token `begin`; 0 outside from_token..to_token."""
    dims, token = tl.arange(0, dim_block), begin + tl.arange(0, tile_tokens)
    visible = (token >= from_token) & (token < to_token)
    if block_tokens % tile_tokens == 0:
        page = tl.load(table + begin // block_tokens, mask=begin < to_token, other=0).to(tl.int64)
    else:
        page = tl.load(table + token // block_tokens, mask=visible, other=0).to(tl.int64)
    place = page * block_stride + (token % block_tokens) * head_dim
    if turned:
        at, kept = side + place[None, :] + dims[:, None], visible[None, :] & (dims < head_dim)[:, None]
    else:
        at, kept = side + place[:, None] + dims[None, :], visible[:, None] & (dims < head_dim)[None, :]
    return tl.load(at, mask=kept, other=0.0)


@jit
def _scores(key, queries, visible, scale_log2, precision: tl.constexpr):  # type: ignore[no-untyped-def]
    """[tile_tokens, rows], in units of log 2; -inf where hidden. Keys come first: they fill the tensor cores' rows."""
    key = key.to(queries.dtype)
    if _WIDEN:
        scores = tl.dot(key.to(tl.float32), queries.to(tl.float32), input_precision="ieee")
    else:
        scores = tl.dot(key, queries, input_precision=precision)
    return tl.where(visible[:, None], scores * scale_log2, float("-inf"))


@jit
def _weighted(value, shares, dtype: tl.constexpr, precision: tl.constexpr):  # type: ignore[no-untyped-def]
    """value [D, tile_tokens] x shares -> [D, rows], multiplied in `dtype`."""
    value, shares = value.to(dtype), shares.to(dtype)
    if _WIDEN:
        return tl.dot(value.to(tl.float32), shares.to(tl.float32), input_precision="ieee")
    return tl.dot(value, shares, input_precision=precision)


@jit_once("tables", "context_lens", "positions", "slots", "table_stride", "window", "num_requests", "workers")
def _fused_attention_kernel(  # type: ignore[no-untyped-def]
    qkv, cache, tables, context_lens, positions, slots, rope_table, q_gain, k_gain, line, piece_sums, piece_stats,
    arrivals, out, block_stride, table_stride, num_requests, workers, scale_log2, window, eps,
    num_kv_heads: tl.constexpr, group: tl.constexpr, head_dim: tl.constexpr,
    block_tokens: tl.constexpr, row_block: tl.constexpr, group_block: tl.constexpr, dim_block: tl.constexpr,
    tile_tokens: tl.constexpr, piece_block: tl.constexpr, has_norm: tl.constexpr,
    early: tl.constexpr, ahead: tl.constexpr, overlap: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    if early:
        trigger(overlap)
    head, worker = tl.program_id(0), tl.program_id(1)
    starts = line + 2 + workers
    share, tile, last_tile, first_request, bound = worker_share(line, worker, workers, num_requests)
    side_stride: tl.constexpr = num_kv_heads * block_tokens * head_dim
    qkv_heads: tl.constexpr = (group + 2) * num_kv_heads
    rows, dims, heads = tl.arange(0, row_block), tl.arange(0, dim_block), tl.arange(0, group_block)
    copies: tl.constexpr = row_block // group_block  # tensor cores take 8 columns: the heads again and again
    one = tl.arange(0, 1)
    there = dims[None, :] < head_dim
    place = rows[None, :] * head_dim + dims[:, None]
    kept = (rows < group)[None, :] & (dims < head_dim)[:, None]
    keys = cache + head * (block_tokens * head_dim)
    values = keys + side_stride
    table = tables + first_request.to(tl.int64) * table_stride
    start, end, stop, length, first_visible, from_token, to_token = worker_span(
        starts, context_lens, first_request, tile, last_tile, window, tile_tokens
    )
    live = tile < last_tile
    position = tl.load(positions + first_request, mask=live, other=0)
    cos, sin = rotation(rope_table, position, heads, dims, head_dim)
    slot = tl.load(slots + first_request, mask=live, other=-1)
    if ahead:
        key = _tile(keys, table, from_token, first_visible, to_token, block_stride, head_dim, block_tokens,
                    dim_block, tile_tokens, False)  # fmt: skip
        value = _tile(values, table, from_token, first_visible, to_token, block_stride, head_dim, block_tokens,
                      dim_block, tile_tokens, True)  # fmt: skip
    if first_request < bound:  # one without work ends at once and leaves its place to the kernel after
        wait(overlap)
    request = first_request
    for _ in range(first_request, bound):
        row = qkv + request.to(tl.int64) * (qkv_heads * head_dim)
        own = rotated_heads(row + (head * group + heads)[:, None] * head_dim, q_gain, cos, sin, heads, dims,
                            (heads < group)[:, None] & there, eps, head_dim, has_norm)  # fmt: skip
        queries = tl.broadcast_to(own[None, :, :], (copies, group_block, dim_block))
        queries = tl.trans(tl.reshape(queries, (row_block, dim_block)))
        if cache.dtype.element_ty.is_fp8():
            queries = queries.to(tl.float16)  # to which the device widens float8 at once
        sums = tl.zeros((dim_block, row_block), tl.float32)
        top = tl.full((row_block,), float("-inf"), tl.float32)
        weight = tl.zeros((row_block,), tl.float32)
        if (stop == end) & (length > 0):
            k_head = row + (num_kv_heads * group + head + one)[:, None] * head_dim
            new_cos, new_sin = rotation(rope_table, position, one, dims, head_dim)
            new_key = rotated_heads(
                k_head, k_gain, new_cos, new_sin, one, dims, there, eps, head_dim, has_norm
            )
            new_value = tl.load(k_head + num_kv_heads * head_dim + dims[None, :], mask=there, other=0.0)
            new_key, new_value = (
                as_cached(new_key, cache.dtype.element_ty),
                as_cached(new_value, cache.dtype.element_ty),
            )
            if slot >= 0:
                stored = (
                    keys
                    + (slot // block_tokens) * block_stride
                    + (slot % block_tokens) * head_dim
                    + dims[None, :]
                )
                tl.store(stored, new_key, mask=there)
                tl.store(stored + side_stride, new_value, mask=there)
            score = tl.sum(own.to(tl.float32) * new_key.to(tl.float32), 1) * scale_log2
            top = tl.reshape(tl.broadcast_to(score[None, :], (copies, group_block)), (row_block,))
            weight += 1.0
            sums += tl.trans(new_value.to(tl.float32))
        for begin in range(from_token, to_token, tile_tokens):
            token, following = begin + tl.arange(0, tile_tokens), begin + tile_tokens
            visible = (token >= first_visible) & (token < to_token)
            if not ahead:
                key = _tile(keys, table, begin, first_visible, to_token, block_stride, head_dim, block_tokens,
                            dim_block, tile_tokens, False)  # fmt: skip
                value = _tile(values, table, begin, first_visible, to_token, block_stride, head_dim, block_tokens,
                              dim_block, tile_tokens, True)  # fmt: skip
            scores = _scores(key, queries, visible, scale_log2, precision)
            if ahead:  # a tile's registers are free once tensor cores have it in shared memory
                key = _tile(keys, table, following, first_visible, to_token, block_stride, head_dim, block_tokens,
                            dim_block, tile_tokens, False)  # fmt: skip
            new_top = tl.maximum(top, tl.max(scores, 0))
            shift = tl.where(new_top == float("-inf"), 0.0, new_top)  # nothing visible yet
            shares, fade = tl.exp2(scores - shift[None, :]), tl.exp2(top - shift)
            weight = weight * fade + tl.sum(shares, 0)
            sums = sums * fade[None, :] + _weighted(value, shares, queries.dtype, precision)
            if ahead:
                value = _tile(values, table, following, first_visible, to_token, block_stride, head_dim,
                              block_tokens, dim_block, tile_tokens, True)  # fmt: skip
            top = new_top
        target = out + (request.to(tl.int64) * num_kv_heads + head) * (group * head_dim)
        first_worker = start // share
        pieces = (end - 1) // share - first_worker + 1
        if pieces == 1:
            result = sums / tl.where(weight == 0.0, 1.0, weight)[None, :]
            tl.store(target + place, result.to(out.dtype.element_ty), mask=kept)
        else:
            piece = (2 * worker + (worker == first_worker)) * num_kv_heads + head
            tl.store(piece_sums + piece * (group * head_dim) + place, sums, mask=kept)
            stats = piece_stats + piece * (2 * group) + rows
            tl.store(stats, top, mask=rows < group)
            tl.store(stats + group, weight, mask=rows < group)
            tl.debug_barrier()  # all threads' stores come before the one thread's release below
            counter = arrivals + first_worker * num_kv_heads + head
            if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == pieces - 1:
                merge_pieces(piece_sums, piece_stats, first_worker, pieces, head, target, num_kv_heads, group,
                             head_dim, group_block, dim_block, piece_block)  # fmt: skip
                tl.store(counter, 0)
        tile = stop
        request += 1
        live = tile < last_tile
        table += table_stride
        start, end, stop, length, first_visible, from_token, to_token = worker_span(
            starts, context_lens, request, tile, last_tile, window, tile_tokens
        )
        position = tl.load(positions + request, mask=live, other=0)
        cos, sin = rotation(rope_table, position, heads, dims, head_dim)
        slot = tl.load(slots + request, mask=live, other=-1)
        if ahead:
            key = _tile(keys, table, from_token, first_visible, to_token, block_stride, head_dim, block_tokens,
                        dim_block, tile_tokens, False)  # fmt: skip
            value = _tile(values, table, from_token, first_visible, to_token, block_stride, head_dim, block_tokens,
                          dim_block, tile_tokens, True)  # fmt: skip
    if not early:
        trigger(overlap)


def row_arguments(
    qkv: Tensor,
    batch: AttentionBatch,
    cache: Tensor,
    scale: AttentionScale,
    heads: HeadInput,
    plan: DecodePlan,
    workspace: DecodeWorkspace,
    out: Tensor,
) -> tuple[Any, ...]:
    """What this kernel and `gluon_decode`'s take first, in their order. Gains that are not there point at qkv."""
    return (
        qkv, cache, batch.tables, batch.context_lens, batch.positions, batch.slots, heads.rope_table,
        qkv if heads.q_gain is None else heads.q_gain, qkv if heads.k_gain is None else heads.k_gain, plan.line,
        workspace.sums, workspace.stats, workspace.arrivals, out, cache.stride(0), batch.tables.stride(0),
        batch.num_requests, plan.workers, scale.scale * LOG2_E, scale.window or 2**30, heads.eps,
    )  # fmt: skip


def attend_rows(
    qkv: Tensor,
    layout: HeadLayout,
    batch: AttentionBatch,
    cache: Tensor,
    scale: AttentionScale,
    heads: HeadInput,
    plan: DecodePlan,
    workspace: DecodeWorkspace,
    tile: AttentionTile,
    out: Tensor,
    overlap: bool,
) -> None:
    """out [R, num_heads * D] of qkv [R, qkv_size], a token each; its keys and values go to `cache` at batch.slots."""
    group = layout.num_heads // layout.num_kv_heads
    group_block, dim_block = triton.next_power_of_2(group), max(16, triton.next_power_of_2(layout.head_dim))
    has_norm = heads.q_gain is not None
    _fused_attention_kernel[(layout.num_kv_heads, plan.workers)](
        *row_arguments(qkv, batch, cache, scale, heads, plan, workspace, out),
        num_kv_heads=layout.num_kv_heads, group=group, head_dim=layout.head_dim,
        block_tokens=batch.block_tokens, row_block=max(8, group_block), group_block=group_block,
        dim_block=dim_block, tile_tokens=plan.tile_tokens,
        piece_block=max(1, min(plan.max_pieces, tile.warps * _MERGED_ELEMENTS // (group_block * dim_block))),
        has_norm=has_norm, early=tile.early, ahead=tile.stages == 1, overlap=overlap,
        precision="ieee" if qkv.element_size() == 4 else "tf32",
        num_warps=tile.warps, num_stages=tile.stages, **launch_options(overlap),
    )  # fmt: skip
