"""RMS norm, with or without the residual addition before it, and SiLU(gate) * up: one pass over memory each.

One program owns one row of a norm, because the sum over the row is all that couples its elements. Rows are read whole,
so the width of a model is bounded by what a program's registers hold (MAX_WIDTH). No products, no quantisation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal_engine.kernels.triton_jit import jit

MAX_WIDTH = 32768
SILU_BLOCK = 1024


@jit
def added(value, residual, at, inside):  # type: ignore[no-untyped-def]
    """value float32 added to the residual, which is stored; the sum in float32."""
    value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    # The norm sees the sum as later layers will read it: rounded to the residual's dtype.
    rounded = value.to(residual.dtype.element_ty)
    tl.store(residual + at, rounded, mask=inside)
    return rounded.to(tl.float32)


@jit
def normed(value, squares, weight, columns, inside, width, eps):  # type: ignore[no-untyped-def]
    """value float32 of a row over its rms, by the sum of its squares, times the norm's weight."""
    scale = tl.math.rsqrt(squares / width + eps)
    gain = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    return value * scale * gain


@jit
def _rms_norm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    has_residual: tl.constexpr,
    block: tl.constexpr,
) -> None:
    columns = tl.arange(0, block)
    inside = columns < width
    at = tl.program_id(0).to(tl.int64) * width + columns
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if has_residual:
        value = added(value, residual, at, inside)
    value = normed(value, tl.sum(value * value, axis=0), weight, columns, inside, width, eps)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@jit
def _silu_mul_kernel(gate_up: tl.tensor, out: tl.tensor, width: tl.tensor, block: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < width
    gate = tl.load(gate_up + row * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (row * 2 + 1) * width + columns, mask=inside, other=0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * width + columns, product.to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    """x [T, H] (and residual [T, H] += x in place) -> its norm times weight [H], in the dtype of x."""
    x, weight = x.contiguous(), weight.contiguous()
    width = weight.shape[0]
    if width > MAX_WIDTH:
        raise ValueError(f"a row of {width} elements does not fit one program, at most {MAX_WIDTH}")
    if residual is not None and (residual.shape != x.shape or not residual.is_contiguous()):
        raise ValueError("the residual must be contiguous and of the shape of x")
    out = torch.empty_like(x)
    rows = x.numel() // width
    if rows == 0:
        return out
    block = triton.next_power_of_2(width)
    _rms_norm_kernel[(rows,)](
        x, x if residual is None else residual, weight, out, width, eps,
        has_residual=residual is not None, block=block, num_warps=warps_of(block),
    )  # fmt: skip
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2*I] -> silu(gate_up[:, :I]) * gate_up[:, I:] [T, I]."""
    gate_up = gate_up.contiguous()
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((rows, width))
    if rows > 0:
        grid = (rows, triton.cdiv(width, SILU_BLOCK))
        _silu_mul_kernel[grid](gate_up, out, width, block=SILU_BLOCK, num_warps=4)
    return out


def warps_of(block: int) -> int:
    """8 elements, one 16-byte load of bfloat16, per thread and step; between 1 and 16 warps."""
    return int(min(16, max(1, block // 256)))
