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
from shoal_engine.kernels.triton_jit import jit, jit_once
from shoal_engine.quantization.fp8 import BLOCK, LARGEST, SMALLEST_PEAK

MAX_WIDTH = 65536  # a program holds a row
_LARGEST = tl.constexpr(LARGEST)
_SMALLEST = tl.constexpr(SMALLEST_PEAK)
_BLOCK = tl.constexpr(BLOCK)
_COLUMNS = 2048
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_ROUND = tl.constexpr(_INTERPRETED)  # the interpreter's own conversion loses the carry out of the mantissa

# Of two bfloat16 gates and as many ups, in half of the instructions that exact divisions take: this kernel's time at many
# rows. e = 2^(-gate * log2(e)) may be infinite, then its reciprocal is 0, as it should be.
_SILU_MUL = tl.constexpr("""
{
    .reg .f32 g, h, u, v, e, f;
    .reg .b32 both;
    shl.b32 both, $2, 16;
    mov.b32 g, both;
    and.b32 both, $2, 0xffff0000;
    mov.b32 h, both;
    shl.b32 both, $3, 16;
    mov.b32 u, both;
    and.b32 both, $3, 0xffff0000;
    mov.b32 v, both;
    mul.f32 e, g, 0fBFB8AA3B;
    mul.f32 f, h, 0fBFB8AA3B;
    ex2.approx.ftz.f32 e, e;
    ex2.approx.ftz.f32 f, f;
    add.f32 e, e, 0f3F800000;
    add.f32 f, f, 0f3F800000;
    rcp.approx.ftz.f32 e, e;
    rcp.approx.ftz.f32 f, f;
    mul.f32 g, g, u;
    mul.f32 h, h, v;
    mul.f32 g, g, e;
    mul.f32 h, h, f;
    cvt.rn.bf16x2.f32 both, h, g;
    shl.b32 $0, both, 16;
    and.b32 $1, both, 0xffff0000;
}
""")


@jit
def scale_of(wide, axis: tl.constexpr):  # type: ignore[no-untyped-def]
    """Infinite beside NaN or infinity, which makes NaN of every product: a broken token is seen and not served."""
    # Magnitudes are ordered as their bits are, and NaN is above infinity.
    peak = tl.max(wide.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis).to(tl.float32, bitcast=True)
    return tl.maximum(tl.where(peak == peak, peak, float("inf")), _SMALLEST) / _LARGEST


@jit
def float8(value, scale, like):  # type: ignore[no-untyped-def]
    """value / scale, both float32, to the nearest of float8 e4m3, ties to even; one division for all of a scale."""
    value *= 1.0 / scale
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
    scale = scale_of(wide, 0)
    tl.store(values + row * k + columns, float8(wide, scale, values), mask=inside)
    tl.store(scales + row, scale)


@jit
def _silu_mul(gate, up):  # type: ignore[no-untyped-def]
    """silu(gate) * up in float32, rounded to their type as a kernel of its own would before it is scaled."""
    if gate.dtype == tl.bfloat16 and not _ROUND:
        return tl.inline_asm_elementwise(
            _SILU_MUL, "=r,=r,r,r", [gate, up], dtype=tl.float32, is_pure=True, pack=2
        )
    wide = gate.to(tl.float32)
    return (wide / (1.0 + tl.exp(-wide)) * up.to(tl.float32)).to(gate.dtype).to(tl.float32)


@jit
def _silu_mul_rows(gate_up, values, scales, k, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < k
    gate = tl.load(gate_up + row * 2 * k + columns, mask=inside, other=0.0)
    product = _silu_mul(gate, tl.load(gate_up + (row * 2 + 1) * k + columns, mask=inside, other=0.0))
    scale = scale_of(product, 0)
    tl.store(values + row * k + columns, float8(product, scale, values), mask=inside)
    tl.store(scales + row, scale)


@jit_once("padded_rows")
def _quantise_groups(x, values, scales, k, padded_rows, groups: tl.constexpr):  # type: ignore[no-untyped-def]
    """scales [K / 128, padded_rows]."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, groups)
    at = group[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]
    inside = at < k
    wide = tl.load(x + row * k + at, mask=inside, other=0.0).to(tl.float32)
    scale = scale_of(wide, 1)
    tl.store(values + row * k + at, float8(wide, scale[:, None], values), mask=inside)
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


def empty_rows(m: int, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """values [M, K] float8_e4m3fn and scales [M, 1] float32."""
    values = torch.empty((m, k), dtype=torch.float8_e4m3fn, device=device)
    return values, torch.empty((m, 1), dtype=torch.float32, device=device)


def empty_groups(m: int, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """values [P, K] float8_e4m3fn and scales [K / 128, P] float32, for P of M rounded up to 4."""
    padded = -(-m // 4) * 4
    values = torch.empty((padded, k), dtype=torch.float8_e4m3fn, device=device)
    return values, torch.empty((k // BLOCK, padded), dtype=torch.float32, device=device)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [M, K] -> float8_e4m3fn [M, K] and scale [M, 1] float32, with x about values * scale."""
    if not launches(x):
        return quantise_rows_reference(x)
    x, (m, k) = x.contiguous(), x.shape
    values, scales = empty_rows(m, k, x.device)
    block = triton.next_power_of_2(k)
    if m > 0:
        _quantise_rows[(m,)](x, values, scales, k, block=block, num_warps=_warps(block))
    return values, scales


def silu_mul_rows(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """gate_up [M, 2K] -> `quantise_rows` of silu(gate_up[:, :K]) * gate_up[:, K:], in one pass over it."""
    m, k = gate_up.shape[0], gate_up.shape[1] // 2
    if not launches(gate_up):
        gate, up = gate_up.float().chunk(2, 1)
        return quantise_rows_reference((functional.silu(gate) * up).to(gate_up.dtype))
    gate_up = gate_up.contiguous()
    values, scales = empty_rows(m, k, gate_up.device)
    block = triton.next_power_of_2(k)
    if m > 0:
        _silu_mul_rows[(m,)](gate_up, values, scales, k, block=block, num_warps=_warps(block))
    return values, scales


def quantise_groups(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [M, K] -> float8_e4m3fn [P, K] and scale [P, K / 128] float32 with strides (1, P), as cuBLASLt reads them.

    P is M rounded up to 4, what is above M is undefined. K a multiple of 128.
    """
    if not launches(x):
        return quantise_groups_reference(x)
    x, (m, k) = x.contiguous(), x.shape
    values, scales = empty_groups(m, k, x.device)
    groups = triton.next_power_of_2(k // BLOCK)
    if m > 0:
        _quantise_groups[(m,)](
            x, values, scales, k, len(values), groups=groups, num_warps=_warps(groups * BLOCK)
        )
    return values, scales.t()


def rescale(y: Tensor, row_scale: Tensor, column_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """y [M, N] contiguous, in place: y * row_scale [M, 1] * column_scale [N] + bias [N]; returns y."""
    m, n = y.shape
    if not launches(y):
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
    return (x.float() * scale.reciprocal()).to(torch.float8_e4m3fn), scale


def quantise_groups_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    m, k = x.shape
    padded = torch.zeros((-(-m // 4) * 4, k), dtype=torch.float32, device=x.device)
    padded[:m] = x
    values, scale = quantise_rows_reference(padded.view(-1, BLOCK))
    by_group = torch.empty((k // BLOCK, padded.shape[0]), dtype=torch.float32, device=x.device)
    by_group.copy_(scale.view(padded.shape[0], k // BLOCK).t())
    return values.view(padded.shape), by_group.t()


def launches(x: Tensor) -> bool:
    """Whether a kernel rounds x; its twin does otherwise."""
    return (on_gpu(x) or _INTERPRETED) and x.shape[-1] <= MAX_WIDTH


def _warps(block: int) -> int:
    """16 elements, two 16-byte loads of bfloat16, per thread and step; between 1 and 16 warps."""
    return int(min(16, max(1, block // 512)))
