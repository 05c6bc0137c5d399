"""A query or key head as attention reads it: its norm, if the model has one, and its rotation, in registers."""

from __future__ import annotations

import triton.language as tl

from shoal_engine.kernels.triton_jit import jit


@jit
def rotation(rope_table, position, dims, head_dim: tl.constexpr):  # type: ignore[no-untyped-def]
    """cos [D] and signed sin [D]: element i turns with i + D/2 (the first half with minus the second)."""
    half: tl.constexpr = head_dim // 2
    angle = rope_table + position * head_dim + tl.where(dims < half, dims, dims - half)
    cos = tl.load(angle, mask=dims < head_dim, other=0.0)
    sin = tl.load(angle + half, mask=dims < head_dim, other=0.0)
    return cos, tl.where(dims < half, -sin, sin)


@jit
def rotated_heads(  # type: ignore[no-untyped-def]
    heads, gain, cos, sin, dims, kept, eps, head_dim: tl.constexpr, has_norm: tl.constexpr
):  # fmt: skip
    """heads [rows, 1] pointers to heads -> [rows, D] in their dtype.

    An element's partner is read from memory a second time, which is cheaper than exchanging halves between threads.
    """
    partner = tl.where(dims < head_dim // 2, dims + head_dim // 2, dims - head_dim // 2)
    own = tl.load(heads + dims[None, :], mask=kept, other=0.0)
    dtype: tl.constexpr = own.dtype
    own = own.to(tl.float32)
    other = tl.load(heads + partner[None, :], mask=kept, other=0.0).to(tl.float32)
    if has_norm:
        scale = tl.math.rsqrt(tl.sum(own * own, 1) / head_dim + eps)[:, None]
        inside = dims < head_dim
        own *= scale * tl.load(gain + dims, mask=inside, other=0.0).to(tl.float32)[None, :]
        other *= scale * tl.load(gain + partner, mask=inside, other=0.0).to(tl.float32)[None, :]
        # As a norm's result in memory is rounded.
        own, other = own.to(dtype).to(tl.float32), other.to(dtype).to(tl.float32)
    return (own * cos[None, :] + other * sin[None, :]).to(dtype)
