"""Rounding of activations to float8 e4m3 for products that multiply in it, and the scales that such a product leaves out.

A scale maps the largest element of a token, or of 128 of its elements, to 448. `quantise_rows` and `quantise_groups` have
torch twins below, which are the oracle and serve a CPU. Weights are quantised in `quantization/fp8.py`.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from shoal_engine.kernels.gpu import on_gpu
from shoal_engine.kernels.triton_jit import jit
from shoal_engine.quantization.fp8 import BLOCK, LARGEST, SMALLEST_PEAK

MAX_WIDTH = 65536  # a program holds a row
_LARGEST = tl.constexpr(LARGEST)
_SMALLEST = tl.constexpr(SMALLEST_PEAK)
_BLOCK = tl.constexpr(BLOCK)
_COLUMNS = 2048
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_ROUND = tl.constexpr(_INTERPRETED)  # the interpreter's own conversion loses the carry out of the mantissa


@jit
def _scale_of(wide, axis: tl.constexpr):  # type: ignore[no-untyped-def]
    """Infinite beside NaN or infinity, which makes NaN of every product: a broken token is seen and not served."""
    peak = tl.max(tl.where(wide == wide, tl.abs(wide), float("inf")), axis)
    return tl.maximum(peak, _SMALLEST) / _LARGEST


@jit
def _float8(value, like):  # type: ignore[no-untyped-def]
    """value float32, at most 448 -> the nearest of float8 e4m3, ties to even."""
    if _ROUND:
        bits = value.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
        # Below 2^-6 all numbers are multiples of 2^-9: the last bit of float32 at 1.5 * 2^14.
        value = tl.where(tl.abs(value) < 0.015625, (value + 24576.0) - 24576.0, normal)
    return value.to(like.dtype.element_ty)


@jit
def _quantise_rows(x, values, scales, k, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < k
    wide = tl.load(x + row * k + columns, mask=inside, other=0.0).to(tl.float32)
    scale = _scale_of(wide, 0)
    tl.store(values + row * k + columns, _float8(wide / scale, values), mask=inside)
    tl.store(scales + row, scale)


@jit
def _silu_mul_rows(gate_up, values, scales, k, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < k
    gate = tl.load(gate_up + row * 2 * k + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (row * 2 + 1) * k + columns, mask=inside, other=0.0).to(tl.float32)
    # As two kernels would: the product is rounded before it is scaled.
    product = (gate / (1.0 + tl.exp(-gate)) * up).to(gate_up.dtype.element_ty).to(tl.float32)
    scale = _scale_of(product, 0)
    tl.store(values + row * k + columns, _float8(product / scale, values), mask=inside)
    tl.store(scales + row, scale)


@jit
def _quantise_groups(x, values, scales, k, padded_rows, groups: tl.constexpr):  # type: ignore[no-untyped-def]
    """scales [K / 128, padded_rows]."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, groups)
    at = group[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]
    inside = at < k
    wide = tl.load(x + row * k + at, mask=inside, other=0.0).to(tl.float32)
    scale = _scale_of(wide, 1)
    tl.store(values + row * k + at, _float8(wide / scale[:, None], values), mask=inside)
    tl.store(scales + group.to(tl.int64) * padded_rows + row, scale, mask=group * _BLOCK < k)


@jit
def _rescale(y, row_scale, column_scale, bias, n, biased: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < n
    value = tl.load(y + row * n + columns, mask=inside, other=0.0).to(tl.float32)
    value *= tl.load(row_scale + row) * tl.load(column_scale + columns, mask=inside, other=0.0)
    if biased:
        value += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * n + columns, value.to(y.dtype.element_ty), mask=inside)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [M, K] -> float8_e4m3fn [M, K] and scale [M, 1] float32, with x about values * scale."""
    if not _launches(x):
        return quantise_rows_reference(x)
    x, (m, k) = x.contiguous(), x.shape
    values = torch.empty((m, k), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((m, 1), dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(k)
    if m > 0:
        _quantise_rows[(m,)](x, values, scales, k, block=block, num_warps=_warps(block))
    return values, scales


def silu_mul_rows(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """gate_up [M, 2K] -> `quantise_rows` of silu(gate_up[:, :K]) * gate_up[:, K:], in one pass over it."""
    m, k = gate_up.shape[0], gate_up.shape[1] // 2
    if not _launches(gate_up):
        gate, up = gate_up.float().chunk(2, 1)
        return quantise_rows_reference((functional.silu(gate) * up).to(gate_up.dtype))
    gate_up = gate_up.contiguous()
    values = torch.empty((m, k), dtype=torch.float8_e4m3fn, device=gate_up.device)
    scales = torch.empty((m, 1), dtype=torch.float32, device=gate_up.device)
    block = triton.next_power_of_2(k)
    if m > 0:
        _silu_mul_rows[(m,)](gate_up, values, scales, k, block=block, num_warps=_warps(block))
    return values, scales


def quantise_groups(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [M, K] -> float8_e4m3fn [P, K] and scale [P, K / 128] float32 with strides (1, P), as cuBLASLt reads them.

    P is M rounded up to 4, what is above M is undefined. K a multiple of 128.
    """
    if not _launches(x):
        return quantise_groups_reference(x)
    x, (m, k) = x.contiguous(), x.shape
    padded = -(-m // 4) * 4
    values = torch.empty((padded, k), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((k // BLOCK, padded), dtype=torch.float32, device=x.device)
    groups = triton.next_power_of_2(k // BLOCK)
    if m > 0:
        _quantise_groups[(m,)](x, values, scales, k, padded, groups=groups, num_warps=_warps(groups * BLOCK))
    return values, scales.t()


def rescale(y: Tensor, row_scale: Tensor, column_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """y [M, N] contiguous, in place: y * row_scale [M, 1] * column_scale [N] + bias [N]; returns y."""
    m, n = y.shape
    if not _launches(y):
        scaled = y.float() * row_scale * column_scale
        return y.copy_(scaled if bias is None else scaled + bias.float())
    if m > 0:
        grid = (m, triton.cdiv(n, _COLUMNS))
        _rescale[grid](
            y, row_scale, column_scale, y if bias is None else bias, n,
            biased=bias is not None, block=_COLUMNS, num_warps=8,
        )  # fmt: skip
    return y


def quantise_rows_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    peak = x.float().abs().nan_to_num(nan=float("inf"), posinf=float("inf")).amax(1, keepdim=True)
    scale = peak.clamp(min=SMALLEST_PEAK) / LARGEST
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


def quantise_groups_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    m, k = x.shape
    padded = torch.zeros((-(-m // 4) * 4, k), dtype=torch.float32, device=x.device)
    padded[:m] = x
    values, scale = quantise_rows_reference(padded.view(-1, BLOCK))
    by_group = torch.empty((k // BLOCK, padded.shape[0]), dtype=torch.float32, device=x.device)
    by_group.copy_(scale.view(padded.shape[0], k // BLOCK).t())
    return values.view(padded.shape), by_group.t()


def _launches(x: Tensor) -> bool:
    return (on_gpu(x) or _INTERPRETED) and x.shape[-1] <= MAX_WIDTH


def _warps(block: int) -> int:
    """16 elements, two 16-byte loads of bfloat16, per thread and step; between 1 and 16 warps."""
    return int(min(16, max(1, block // 512)))
