"""A query or key head as attention reads it: its norm, if the model has one, and its rotation, in registers."""

from __future__ import annotations

import triton.language as tl

from shoal_engine.kernels.triton_jit import jit


@jit
def rotation(rope_table, position, rows, dims, head_dim: tl.constexpr):  # type: ignore[no-untyped-def]
    """cos and signed sin, [rows, D]: element i turns with i + D/2 (the first half with minus the second).

    The same in every row, so that they are loaded in the layout of the heads they are multiplied with.
    """
    half: tl.constexpr = head_dim // 2
    inside = (dims < head_dim)[None, :] & (rows >= 0)[:, None]
    angle = (
        rope_table
        + position * head_dim
        + tl.where(dims < half, dims, dims - half)[None, :]
        + rows[:, None] * 0
    )
    cos = tl.load(angle, mask=inside, other=0.0)
    sin = tl.load(angle + half, mask=inside, other=0.0)
    return cos, tl.where((dims < half)[None, :], -sin, sin)


@jit
def rotated_heads(  # type: ignore[no-untyped-def]
    heads, gain, cos, sin, rows, dims, kept, eps, head_dim: tl.constexpr, has_norm: tl.constexpr
):  # fmt: skip
    """heads [rows, 1] pointers to heads -> [rows, D] in their dtype.

    An element's partner is read from memory a second time, which is cheaper than exchanging halves between threads.
    """
    partner = tl.where(dims < head_dim // 2, dims + head_dim // 2, dims - head_dim // 2)
    own = tl.load(heads + dims[None, :], mask=kept, other=0.0)
    other = tl.load(heads + partner[None, :], mask=kept, other=0.0).to(tl.float32)
    if has_norm:
        gains = gain + rows[:, None] * 0
        own_gain = tl.load(gains + dims[None, :], mask=kept, other=0.0).to(tl.float32)
        other_gain = tl.load(gains + partner[None, :], mask=kept, other=0.0).to(tl.float32)
    dtype: tl.constexpr = own.dtype
    own = own.to(tl.float32)
    if has_norm:
        scale = tl.math.rsqrt(tl.sum(own * own, 1) / head_dim + eps)[:, None]
        # As a norm's result in memory is rounded.
        own = (own * scale * own_gain).to(dtype).to(tl.float32)
        other = (other * scale * other_gain).to(dtype).to(tl.float32)
    return (own * cos + other * sin).to(dtype)


@jit
def as_cached(x, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """x as a cache of `dtype` holds it: 448 is float8_e4m3's largest number, and there is no infinity beyond."""
    if dtype.is_fp8():
        x = tl.minimum(tl.maximum(x.to(tl.float32), -448.0), 448.0)
    return x.to(dtype)
