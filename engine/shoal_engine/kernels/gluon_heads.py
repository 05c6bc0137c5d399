"""A query or key head as attention reads it: `triton_fused_heads.py` for Gluon, with each element's partner at hand."""

from __future__ import annotations

from triton.experimental.gluon import language as gl

from shoal_engine.kernels.gluon_jit import jit

FLOAT8 = gl.constexpr(gl.float8e4nv)
_LARGEST = gl.constexpr(448.0)  # in float8_e4m3; it has no infinity


@jit
def rotated(  # type: ignore[no-untyped-def]
    own, partner, gain, partner_gain, cos, sin, eps, head_dim: gl.constexpr, axis: gl.constexpr, has_norm: gl.constexpr
):  # fmt: skip
    """A head as attention reads it, dims on `axis`; partner: each element's other half, sin with its sign."""
    dtype: gl.constexpr = own.dtype
    x, y = own.to(gl.float32), partner.to(gl.float32)
    if has_norm:
        scale = gl.rsqrt(gl.sum(x * x, axis) / head_dim + eps)
        if axis == 1:
            scale = scale[:, None]
        # As a norm's result in memory is rounded.
        x = (x * scale * gain).to(dtype).to(gl.float32)
        y = (y * scale * partner_gain).to(dtype).to(gl.float32)
    return (x * cos + y * sin).to(dtype)


@jit
def as_cached(x, dtype: gl.constexpr):  # type: ignore[no-untyped-def]
    if dtype == FLOAT8:
        return gl.minimum(gl.maximum(x.to(gl.float32), -_LARGEST), _LARGEST).to(dtype)
    else:
        return x.to(dtype)
