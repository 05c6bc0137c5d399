"""What happens to a row of QKV before attention: head norm, rotation, and the write of keys and values to their pages.

A program takes one token and a few heads; query, key and value heads go through the same lines and differ only in what
is selected. The cache is [num_blocks, 2, kv_heads, block_tokens, D], so that key head i and value head i are heads i and
kv_heads + i of one axis: the order of the heads in a QKV row. The blocks themselves may stand apart (`block_stride`).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from shoal_engine.kernels.interface import AttentionBatch, HeadLayout
from shoal_engine.kernels.triton_jit import jit, jit_once

HEADS_PER_PROGRAM = 8


@jit
def _head_norm(
    first: tl.tensor,
    second: tl.tensor,
    norm: tl.tensor,
    lanes: tl.tensor,
    half: tl.constexpr,
    eps: tl.tensor,
    dtype: tl.constexpr,
) -> tl.tensor:
    """Both halves of every head [heads, half], normalised and rounded to `dtype` as a norm's result in memory is."""
    mean = (tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / (2 * half)
    scale = tl.math.rsqrt(mean + eps)[:, None]
    first_gain = tl.load(norm + lanes, mask=lanes < half, other=0.0).to(tl.float32)
    second_gain = tl.load(norm + half + lanes, mask=lanes < half, other=0.0).to(tl.float32)
    first = (first * scale * first_gain[None, :]).to(dtype).to(tl.float32)
    second = (second * scale * second_gain[None, :]).to(dtype).to(tl.float32)
    return first, second


@jit
def _clamped(x: tl.tensor) -> tl.tensor:
    """What float8_e4m3 can hold: 448 is its largest number, and there is no infinity beyond."""
    return tl.minimum(tl.maximum(x.to(tl.float32), -448.0), 448.0)


@jit_once("positions", "slots")
def _rotate_and_store_kernel(
    qkv: tl.tensor,
    rope_table: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    cache: tl.tensor,
    q_out: tl.tensor,
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    block_stride: tl.tensor,
    eps: tl.tensor,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    block_tokens: tl.constexpr,
    has_norm: tl.constexpr,
    lane_block: tl.constexpr,
    head_block: tl.constexpr,
) -> None:
    half: tl.constexpr = head_dim // 2
    all_heads: tl.constexpr = num_heads + 2 * num_kv_heads
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * head_block + tl.arange(0, head_block)
    lanes = tl.arange(0, lane_block)
    inside = (heads[:, None] < all_heads) & (lanes[None, :] < half)
    row = qkv + (token * all_heads + heads[:, None]) * head_dim + lanes[None, :]
    raw_first = tl.load(row, mask=inside, other=0.0)
    raw_second = tl.load(row + half, mask=inside, other=0.0)
    first, second = raw_first.to(tl.float32), raw_second.to(tl.float32)
    is_query = heads[:, None] < num_heads
    is_value = heads[:, None] >= num_heads + num_kv_heads
    dtype: tl.constexpr = qkv.dtype.element_ty
    if has_norm:
        q_first, q_second = _head_norm(first, second, q_norm, lanes, half, eps, dtype)
        k_first, k_second = _head_norm(first, second, k_norm, lanes, half, eps, dtype)
        first, second = tl.where(is_query, q_first, k_first), tl.where(is_query, q_second, k_second)
    angle = rope_table + tl.load(positions + token) * head_dim + lanes
    cos = tl.load(angle, mask=lanes < half, other=0.0)[None, :]
    sin = tl.load(angle + half, mask=lanes < half, other=0.0)[None, :]
    rotated_first = (first * cos - second * sin).to(dtype)
    rotated_second = (second * cos + first * sin).to(dtype)

    q_row = q_out + (token * num_heads + heads[:, None]) * head_dim + lanes[None, :]
    tl.store(q_row, rotated_first, mask=inside & is_query)
    tl.store(q_row + half, rotated_second, mask=inside & is_query)

    slot = tl.load(slots + token)
    if slot >= 0:
        page = cache + (slot // block_tokens) * block_stride + (slot % block_tokens) * head_dim
        kv_row = page + (heads[:, None] - num_heads) * (block_tokens * head_dim) + lanes[None, :]
        stored = inside & (heads[:, None] >= num_heads)
        kept_first = tl.where(is_value, raw_first, rotated_first)
        kept_second = tl.where(is_value, raw_second, rotated_second)
        if cache.dtype.element_ty.is_fp8():
            kept_first, kept_second = _clamped(kept_first), _clamped(kept_second)
        tl.store(kv_row, kept_first.to(cache.dtype.element_ty), mask=stored)
        tl.store(kv_row + half, kept_second.to(cache.dtype.element_ty), mask=stored)


def rotate_and_store(
    qkv: Tensor,
    layout: HeadLayout,
    rope_table: Tensor,
    batch: AttentionBatch,
    cache: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> Tensor:
    """`interface.Kernels.rotate_and_store`: qkv [T, qkv_size] -> q [T, num_heads, D]; keys and values go to `cache`."""
    qkv = qkv.contiguous()
    q = qkv.new_empty((qkv.shape[0], layout.num_heads, layout.head_dim))
    if qkv.shape[0] == 0:
        return q
    has_norm = q_norm is not None and k_norm is not None
    heads = layout.num_heads + 2 * layout.num_kv_heads
    _rotate_and_store_kernel[(qkv.shape[0], triton.cdiv(heads, HEADS_PER_PROGRAM))](
        qkv, rope_table, batch.positions, batch.slots, cache, q,
        q_norm if has_norm else qkv, k_norm if has_norm else qkv, cache.stride(0), eps,
        num_heads=layout.num_heads, num_kv_heads=layout.num_kv_heads, head_dim=layout.head_dim,
        block_tokens=batch.block_tokens, has_norm=has_norm,
        lane_block=triton.next_power_of_2(layout.head_dim // 2), head_block=HEADS_PER_PROGRAM, num_warps=4,
    )  # fmt: skip
    return q
