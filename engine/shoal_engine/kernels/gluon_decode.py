"""Decode attention straight from rows of QKV, in registers: head norm, rotation, write of the new token, paged attention.

Gluon for Hopper, no interpreter; `triton_fused_attention.py` is the same for all other devices and `triton_decode.py` for
what this does not know (softcap, sinks, shared prefixes). Work is dealt by `triton_decode_plan.py`.

The warps of a program take 16 tokens each at a time, on their own: keys and values go from memory to registers in the
order in which tensor cores want them, so nothing passes through shared memory and no warp waits for another until all sums
are added at the end. One tile of keys and values is always on its way while the one before it is multiplied; the first is
there before the wait for QKV. The new token joins at the end and never passes through the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from shoal_engine.kernels.fused_tiles import AttentionTile
from shoal_engine.kernels.gluon_heads import FLOAT8, as_cached, rotated
from shoal_engine.kernels.gluon_jit import barrier, jit, jit_once
from shoal_engine.kernels.gluon_softmax import HEADS, HIDDEN, added, all_pieces, joined, normalised
from shoal_engine.kernels.gluon_tiles import TOKENS, in_order, load_tokens, turned, value_bases
from shoal_engine.kernels.gluon_words import numbers
from shoal_engine.kernels.gpu import kind_of
from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadInput, HeadLayout
from shoal_engine.kernels.triton_decode import DecodeWorkspace
from shoal_engine.kernels.triton_decode_plan import DecodePlan, worker_share, worker_span
from shoal_engine.kernels.triton_fused_attention import row_arguments
from shoal_engine.kernels.triton_fused_launch import INTERPRETED, launch_options

_DIMS = (64, 128)
# Of a thread, by the bytes of a number in the cache. Left alone the compiler takes all and halves the programs that fit.
_REGISTERS = {1: 128, 2: 168}
_PROCESSOR_REGISTERS = 65536
_TILE_TOKENS = 64  # of the plan's tiles: what a cut request is cut at


@jit
def _both(  # type: ignore[no-untyped-def]
    key_words, value_words, table, begin, from_token, to_token, block_words, row_words: gl.constexpr,
    block_tokens: gl.constexpr, warps: gl.constexpr, word_layout: gl.constexpr, value_layout: gl.constexpr,
):  # fmt: skip
    """Keys and values of the tokens from `begin`."""
    key = load_tokens(key_words, table, begin, from_token, to_token, block_words, row_words, block_tokens, warps,
                      word_layout)  # fmt: skip
    value = load_tokens(value_words, table, begin, from_token, to_token, block_words, row_words, block_tokens, warps,
                        value_layout)  # fmt: skip
    return key, value


@jit
def _walk(  # type: ignore[no-untyped-def]
    queries, key, value, key_words, value_words, table, from_token, first_visible, to_token, block_words, scale_log2,
    block_tokens: gl.constexpr, packed: gl.constexpr, value_piece: gl.constexpr, compute: gl.constexpr,
    word_layout: gl.constexpr, value_layout: gl.constexpr, mma: gl.constexpr,
):  # fmt: skip
    """Each warp's sums [W, D', 8], maxima and weights [W, 8] over its tokens. key, value: those that are here already."""
    warps: gl.constexpr = queries.shape[0]
    head_dim: gl.constexpr = queries.shape[1]
    row_words: gl.constexpr = head_dim // packed
    key_layout: gl.constexpr = gl.DotOperandLayout(0, mma, 4 * packed)
    turned_layout: gl.constexpr = gl.DotOperandLayout(0, mma, 2)
    share_layout: gl.constexpr = gl.DotOperandLayout(1, mma, 2)
    of_tops: gl.constexpr = gl.SliceLayout(1, mma)
    w = gl.arange(0, warps, layout=gl.SliceLayout(1, gl.SliceLayout(2, mma)))
    t = gl.arange(0, TOKENS, layout=gl.SliceLayout(0, gl.SliceLayout(2, mma)))
    top = gl.full([warps, HEADS], HIDDEN, gl.float32, layout=of_tops)
    weight = gl.zeros([warps, HEADS], gl.float32, layout=of_tops)
    sums = gl.zeros([warps, head_dim, HEADS], gl.float32, layout=mma)
    for begin in range(from_token, to_token, warps * TOKENS):
        following = begin + warps * TOKENS
        token = begin + w[:, None] * TOKENS + t[None, :]
        visible = (token >= first_visible) & (token < to_token)
        keys = gl.convert_layout(numbers(key, packed, compute), key_layout, assert_trivial=True)
        scores = mma_v2(keys, queries, gl.zeros([warps, TOKENS, HEADS], gl.float32, layout=mma))
        scores = gl.where(visible[:, :, None], scores * scale_log2, HIDDEN)
        key = load_tokens(key_words, table, following, first_visible, to_token, block_words, row_words, block_tokens,
                          warps, word_layout)  # fmt: skip
        new_top = gl.maximum(top, gl.max(scores, 1))
        shift = gl.where(new_top == HIDDEN, 0.0, new_top)  # nothing visible yet
        shares, fade = gl.exp2(scores - shift[:, None, :]), gl.exp2(top - shift)
        weight = weight * fade + gl.sum(shares, 1)
        values = turned(value, packed, value_piece, compute, turned_layout)
        shares = gl.convert_layout(shares.to(compute), share_layout)
        sums = mma_v2(values, shares, sums * fade[:, None, :])
        value = load_tokens(value_words, table, following, first_visible, to_token, block_words, row_words, block_tokens,
                            warps, value_layout)  # fmt: skip
        top = new_top
    return sums, top, weight


@jit
def _leave(  # type: ignore[no-untyped-def]
    target, total, top, weight, piece_sums, piece_stats, arrivals, worker, head, start, end, share,
    num_kv_heads: gl.constexpr, group: gl.constexpr, flat: gl.constexpr,
):  # fmt: skip
    """The part of a request that lies in tiles `start` to `end`: all of it to target [group, D], or as a piece.

    Whoever leaves the last piece adds all of them to target.
    """
    head_dim: gl.constexpr = total.shape[1]
    heads_layout: gl.constexpr = total.type.layout
    h = gl.arange(0, HEADS, layout=gl.SliceLayout(1, heads_layout))
    d = gl.arange(0, head_dim, layout=gl.SliceLayout(0, heads_layout))
    at, kept = h[:, None] * head_dim + d[None, :], (h < group)[:, None] & (d >= 0)[None, :]
    first_worker = start // share
    pieces = (end - 1) // share - first_worker + 1
    if pieces == 1:
        gl.store(target + at, normalised(total, weight, target.dtype.element_ty), mask=kept)
    else:
        piece = (2 * worker + (worker == first_worker).to(gl.int32)) * num_kv_heads + head
        gl.store(piece_sums + piece * (group * head_dim) + at, total, mask=kept)
        stats = piece_stats + piece * (2 * group) + h
        gl.store(stats, top, mask=h < group)
        gl.store(stats + group, weight, mask=h < group)
        barrier()  # all threads' stores come before the one thread's release below
        counter = arrivals + first_worker * num_kv_heads + head
        if gl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == pieces - 1:
            nothing = gl.zeros_like(top)
            total, top, weight = all_pieces(
                (gl.zeros_like(total), nothing + HIDDEN, nothing), piece_sums, piece_stats, first_worker, pieces, head,
                num_kv_heads, group, head_dim, flat.size_per_thread[0], flat, heads_layout,
            )  # fmt: skip
            gl.store(target + at, normalised(total, weight, target.dtype.element_ty), mask=kept)
            gl.store(counter, 0)


@jit_once(
    "tables", "context_lens", "positions", "slots", "table_stride", "window", "num_requests", "workers", "fresh"
)  # fmt: skip
def _decode_rows(  # type: ignore[no-untyped-def]
    qkv, cache, tables, context_lens, positions, slots, rope_table, q_gain, k_gain, line, piece_sums, piece_stats,
    arrivals, out, block_stride, table_stride, num_requests, workers, scale_log2, window, eps, fresh,
    num_kv_heads: gl.constexpr, group: gl.constexpr, head_dim: gl.constexpr, block_tokens: gl.constexpr,
    warps: gl.constexpr, tile_tokens: gl.constexpr, packed: gl.constexpr, value_piece: gl.constexpr,
    of_thread: gl.constexpr, of_lanes: gl.constexpr, of_warps: gl.constexpr, has_norm: gl.constexpr,
    overlap: gl.constexpr,
):  # fmt: skip
    """Program (head, worker) attends the worker's share of the line of tiles for one key/value head.

    The kernel after may start at once, since it waits before it reads; a program without work ends without a wait, since
    there is one with work. Before the wait only what is constant in the step is read, and the plan, if it is not `fresh`.
    """
    if overlap:
        gdc_launch_dependents()
        if fresh != 0:
            gdc_wait()
    dtype: gl.constexpr = cache.dtype.element_ty
    mma: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [warps, 1, 1], [1, 16, 8])
    word_layout: gl.constexpr = gl.DotOperandLayout(0, mma, 4)
    query_layout: gl.constexpr = gl.DotOperandLayout(1, mma, 4 * packed)
    value_layout: gl.constexpr = gl.DistributedLinearLayout(
        of_thread, of_lanes, of_warps, [], [warps, TOKENS, head_dim // packed]
    )
    flat: gl.constexpr = gl.BlockedLayout([warps, 1, head_dim // 32], [1, 1, 32], [1, warps, 1], [2, 1, 0])
    heads_layout: gl.constexpr = gl.BlockedLayout([1, head_dim // 32], [1, 32], [warps, 1], [1, 0])
    # The device widens float8 to float16 at once.
    compute: gl.constexpr = gl.float16 if dtype == FLOAT8 else dtype
    head, worker = gl.program_id(0), gl.program_id(1)
    starts = line + 2 + workers
    share, tile, last_tile, first_request, bound = worker_share(line, worker, workers, num_requests)
    side_stride: gl.constexpr = num_kv_heads * block_tokens * head_dim
    qkv_heads: gl.constexpr = (group + 2) * num_kv_heads
    keys = cache + head * (block_tokens * head_dim)
    key_words = keys.to(gl.pointer_type(gl.int32))
    value_words = (keys + side_stride).to(gl.pointer_type(gl.int32))
    block_words = block_stride // packed
    row_words: gl.constexpr = head_dim // packed
    table = tables + first_request.to(gl.int64) * table_stride
    start, end, stop, length, first_visible, from_token, to_token = worker_span(
        starts, context_lens, first_request, tile, last_tile, window, tile_tokens
    )
    key, value = _both(
        key_words, value_words, table, from_token, first_visible, to_token, block_words, row_words, block_tokens, warps,
        word_layout, value_layout,
    )  # fmt: skip
    h = gl.arange(0, HEADS, layout=gl.SliceLayout(1, heads_layout))
    d = gl.arange(0, head_dim, layout=gl.SliceLayout(0, heads_layout))
    half: gl.constexpr = head_dim // 2
    partner, angle, sign = (d + half) % head_dim, d % half, gl.where(d < half, -1.0, 1.0)
    at = h[:, None] * head_dim + d[None, :]
    kept = (h < group)[:, None] & (d >= 0)[None, :]
    # One without work ends at once and leaves its place to the kernel after.
    if overlap and first_request < bound:
        gdc_wait()
    request = first_request
    for _ in range(first_request, bound):
        row = qkv + request.to(gl.int64) * (qkv_heads * head_dim)
        q_row, k_row = row + head * (group * head_dim), row + (num_kv_heads * group + head) * head_dim
        own = gl.load(q_row + at, mask=kept, other=0.0)
        other = gl.load(q_row + h[:, None] * head_dim + partner[None, :], mask=kept, other=0.0)
        k_own, k_other = gl.load(k_row + d), gl.load(k_row + partner)
        new_value = gl.load(k_row + num_kv_heads * head_dim + d)
        position = gl.load(positions + request)
        cos = gl.load(rope_table + position * head_dim + angle)
        sin = gl.load(rope_table + position * head_dim + half + angle) * sign
        gain, other_gain, k_gains, other_k_gains = cos, cos, cos, cos
        if has_norm:
            gain, other_gain = gl.load(q_gain + d).to(gl.float32), gl.load(q_gain + partner).to(gl.float32)
            k_gains = gl.load(k_gain + d).to(gl.float32)
            other_k_gains = gl.load(k_gain + partner).to(gl.float32)
        heads = rotated(own, other, gain[None, :], other_gain[None, :], cos[None, :], sin[None, :], eps, head_dim,
                         1, has_norm).to(compute)  # fmt: skip
        queries = gl.convert_layout(gl.permute(heads, (1, 0)), gl.SliceLayout(0, query_layout))[None, :, :]
        queries += gl.zeros([warps, head_dim, HEADS], compute, layout=query_layout)  # the same in every warp
        sums, top, weight = _walk(
            queries, key, value, key_words, value_words, table, from_token, first_visible, to_token, block_words,
            scale_log2, block_tokens, packed, value_piece, compute, word_layout, value_layout, mma,
        )  # fmt: skip
        # The dims back in their order, and the sums of all warps side by side.
        parts = in_order(sums, head_dim, warps, value_piece, flat)
        of_parts: gl.constexpr = gl.SliceLayout(2, flat)
        total, total_top, total_weight = added(
            parts, gl.convert_layout(top, of_parts), gl.convert_layout(weight, of_parts), heads_layout
        )
        if (stop == end) & (length > 0):
            new_key = as_cached(
                rotated(k_own, k_other, k_gains, other_k_gains, cos, sin, eps, head_dim, 0, has_norm), dtype
            )
            kept_value = as_cached(new_value, dtype)
            slot = gl.load(slots + request)
            if slot >= 0:
                page = keys + (slot // block_tokens) * block_stride + (slot % block_tokens) * head_dim
                gl.store(page + d, new_key)
                gl.store(page + side_stride + d, kept_value)
            score = gl.sum(heads.to(gl.float32) * new_key.to(gl.float32)[None, :], 1) * scale_log2
            alone = kept_value.to(gl.float32)[None, :] + gl.zeros_like(total)
            one = gl.zeros_like(score) + 1.0
            total, total_top, total_weight = joined(total, total_top, total_weight, alone, score, one)
        target = out + (request.to(gl.int64) * num_kv_heads + head) * (group * head_dim)
        _leave(
            target, total, total_top, total_weight, piece_sums, piece_stats, arrivals, worker, head, start, end, share,
            num_kv_heads, group, flat,
        )  # fmt: skip
        tile = stop
        request += 1
        table += table_stride
        start, end, stop, length, first_visible, from_token, to_token = worker_span(
            starts, context_lens, request, tile, last_tile, window, tile_tokens
        )
        key, value = _both(
            key_words, value_words, table, from_token, first_visible, to_token, block_words, row_words, block_tokens, warps,
            word_layout, value_layout,
        )  # fmt: skip


def serves(layout: HeadLayout, scale: AttentionScale, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this kernel knows such heads; others are `triton_decode.py`'s. dtype: the model's."""
    if INTERPRETED or dtype != torch.bfloat16 or scale.softcap is not None or scale.sinks is not None:
        return False
    known = layout.head_dim in _DIMS and layout.num_heads <= int(HEADS) * layout.num_kv_heads
    return known and device.type != "cpu" and kind_of(device).capability[0] == 9


def tile_for(rows: int, cache_bytes: int, processors: int) -> AttentionTile:
    """By requests of a step and the bytes of a number in the cache: as many programs as fit the processors at once.

    More would be a second round, half empty. Fewer for few requests, which are cut into pieces; many have two warps each.
    """
    warps = 4 if rows <= 96 else 2
    fit = _PROCESSOR_REGISTERS // (32 * warps * _REGISTERS[cache_bytes])
    return AttentionTile(_TILE_TOKENS, warps, processors * (min(fit, 3) if rows <= 16 else fit))


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
    fresh: bool = False,
) -> None:
    """As `triton_fused_attention.attend_rows`; of the tile, only warps are read, the rest is in the plan.

    fresh: the kernel before this one in the stream makes the plan. out: in float16 a sixteenth (`gluon_words.stored`).
    """
    group, has_norm = layout.num_heads // layout.num_kv_heads, heads.q_gain is not None
    packed = 4 // cache.element_size()
    piece = min(4, layout.head_dim // packed // 8)  # words of a token that one of 8 threads loads at once
    of_thread, of_lanes, of_warps = value_bases(layout.head_dim // packed, piece, tile.warps)
    _decode_rows[(layout.num_kv_heads, plan.workers)](
        *row_arguments(qkv, batch, cache, scale, heads, plan, workspace, out), int(fresh),
        num_kv_heads=layout.num_kv_heads, group=group, head_dim=layout.head_dim, block_tokens=batch.block_tokens,
        warps=tile.warps, tile_tokens=plan.tile_tokens, packed=packed, value_piece=piece * packed,
        of_thread=of_thread, of_lanes=of_lanes, of_warps=of_warps, has_norm=has_norm, overlap=overlap,
        num_warps=tile.warps, maxnreg=_REGISTERS[cache.element_size()], **launch_options(overlap),
    )  # fmt: skip
