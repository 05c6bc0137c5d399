"""What happens to a row of QKV before attention: head norm, rotation, and the write of keys and values to their pages.

A program takes one token and an equal share of its query, key and value heads: it reads all of them before it computes,
and queries and keys share its angles. The cache is [num_blocks, 2, kv_heads, block_tokens, D], so that value head i is
head kv_heads + i of the axis of the key heads. The blocks themselves may stand apart (`block_stride`).
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from shoal_engine.kernels.interface import AttentionBatch, HeadLayout
from shoal_engine.kernels.triton_jit import jit, jit_once


@dataclass(frozen=True, slots=True)
class RotaryTiling:
    """query_heads: of a program at most; elements_per_warp: of those heads."""

    query_heads: int
    elements_per_warp: int


# What was fastest on an H200 (benchmarks/h200/long_prompts.py): few tokens are spread over more programs, and many ask for
# 16-byte loads of bfloat16, from either half of a head, and for angles and head norms that more heads share.
SPREAD = RotaryTiling(8, 256)
WHOLE = RotaryTiling(32, 512)
MANY_TOKENS = 2048


@jit
def _turned(
    first: tl.tensor,
    second: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    norm: tl.tensor,
    lanes: tl.tensor,
    half: tl.constexpr,
    eps: tl.tensor,
    has_norm: tl.constexpr,
) -> tl.tensor:
    """Both halves of every head [heads, half]: normalised, rounded as a norm's result in memory is, and rotated."""
    dtype: tl.constexpr = first.dtype
    first, second = first.to(tl.float32), second.to(tl.float32)
    if has_norm:
        mean = tl.sum(first * first + second * second, axis=1) / (2 * half)
        scale = tl.math.rsqrt(mean + eps)[:, None]
        first_gain = tl.load(norm + lanes, mask=lanes < half, other=0.0).to(tl.float32)
        second_gain = tl.load(norm + half + lanes, mask=lanes < half, other=0.0).to(tl.float32)
        first = (first * scale * first_gain[None, :]).to(dtype).to(tl.float32)
        second = (second * scale * second_gain[None, :]).to(dtype).to(tl.float32)
    return (first * cos - second * sin).to(dtype), (second * cos + first * sin).to(dtype)


@jit
def _store(at: tl.tensor, x: tl.tensor, inside: tl.tensor) -> None:
    """448 is the largest number of float8_e4m3, and there is no infinity beyond."""
    if at.dtype.element_ty.is_fp8():
        x = tl.minimum(tl.maximum(x.to(tl.float32), -448.0), 448.0)
    tl.store(at, x.to(at.dtype.element_ty), mask=inside)


@jit
def _store_halves(
    at: tl.tensor, half: tl.constexpr, first: tl.tensor, second: tl.tensor, inside: tl.tensor
) -> None:
    _store(at, first, inside)
    _store(at + half, second, inside)


@jit_once("positions", "slots")
def _rotate_and_store_kernel(
    qkv: tl.tensor,
    rope_table: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    cache: tl.tensor,
    q_out: tl.tensor,
    k_out: tl.tensor,
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    block_stride: tl.tensor,
    eps: tl.tensor,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    block_tokens: tl.constexpr,
    has_norm: tl.constexpr,
    has_k_out: tl.constexpr,
    q_block: tl.constexpr,
    kv_block: tl.constexpr,
    lane_block: tl.constexpr,
) -> None:
    half: tl.constexpr = head_dim // 2
    side: tl.constexpr = num_kv_heads * block_tokens * head_dim  # from a page's keys to its values
    token, share = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lanes, dims = tl.arange(0, lane_block), tl.arange(0, 2 * lane_block)
    q_heads = share * q_block + tl.arange(0, q_block)[:, None]
    kv_heads = share * kv_block + tl.arange(0, kv_block)[:, None]
    q_at, k_at = q_heads * head_dim + lanes[None, :], kv_heads * head_dim + lanes[None, :]
    is_q = (q_heads < num_heads) & (lanes[None, :] < half)
    is_k = (kv_heads < num_kv_heads) & (lanes[None, :] < half)
    is_v = (kv_heads < num_kv_heads) & (dims[None, :] < head_dim)

    angle = rope_table + tl.load(positions + token) * head_dim + lanes
    slot = tl.load(slots + token)
    queries = qkv + token * ((num_heads + 2 * num_kv_heads) * head_dim)
    keys, values = queries + num_heads * head_dim, queries + (num_heads + num_kv_heads) * head_dim
    q_first = tl.load(queries + q_at, mask=is_q, other=0.0)
    q_second = tl.load(queries + half + q_at, mask=is_q, other=0.0)
    k_first = tl.load(keys + k_at, mask=is_k, other=0.0)
    k_second = tl.load(keys + half + k_at, mask=is_k, other=0.0)
    v = tl.load(values + kv_heads * head_dim + dims[None, :], mask=is_v, other=0.0)
    cos = tl.load(angle, mask=lanes < half, other=0.0)[None, :]
    sin = tl.load(angle + half, mask=lanes < half, other=0.0)[None, :]

    q_first, q_second = _turned(q_first, q_second, cos, sin, q_norm, lanes, half, eps, has_norm)
    _store_halves(q_out + token * (num_heads * head_dim) + q_at, half, q_first, q_second, is_q)
    k_first, k_second = _turned(k_first, k_second, cos, sin, k_norm, lanes, half, eps, has_norm)
    if has_k_out:
        _store_halves(k_out + token * (num_kv_heads * head_dim) + k_at, half, k_first, k_second, is_k)
    if slot >= 0:
        page = cache + (slot // block_tokens) * block_stride + (slot % block_tokens) * head_dim
        page += kv_heads * (block_tokens * head_dim)
        _store_halves(page + lanes[None, :], half, k_first, k_second, is_k)
        _store(page + side + dims[None, :], v, is_v)


def rotate_and_store(
    qkv: Tensor,
    layout: HeadLayout,
    rope_table: Tensor,
    batch: AttentionBatch,
    cache: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    k_out: Tensor | None = None,
    tiling: RotaryTiling | None = None,
) -> Tensor:
    """`interface.Kernels.rotate_and_store`: qkv [T, qkv_size] -> q [T, num_heads, D]; keys and values go to `cache`.

    k_out [T, num_kv_heads, D]: where the keys go as well.
    """
    qkv = qkv.contiguous()
    tokens = qkv.shape[0]
    q = qkv.new_empty((tokens, layout.num_heads, layout.head_dim))
    if tokens == 0:
        return q
    has_norm = q_norm is not None and k_norm is not None
    tiling = tiling or (WHOLE if tokens >= MANY_TOKENS else SPREAD)
    shares = triton.cdiv(layout.num_heads, tiling.query_heads)
    q_block = triton.next_power_of_2(triton.cdiv(layout.num_heads, shares))
    lane_block = triton.next_power_of_2(layout.head_dim // 2)
    _rotate_and_store_kernel[(tokens, shares)](
        qkv, rope_table, batch.positions, batch.slots, cache, q, q if k_out is None else k_out,
        q_norm if has_norm else qkv, k_norm if has_norm else qkv, cache.stride(0), eps,
        num_heads=layout.num_heads, num_kv_heads=layout.num_kv_heads, head_dim=layout.head_dim,
        block_tokens=batch.block_tokens, has_norm=has_norm, has_k_out=k_out is not None, q_block=q_block,
        kv_block=triton.next_power_of_2(triton.cdiv(layout.num_kv_heads, shares)), lane_block=lane_block,
        num_warps=min(8, max(1, q_block * lane_block * 2 // tiling.elements_per_warp)),
    )  # fmt: skip
    return q
