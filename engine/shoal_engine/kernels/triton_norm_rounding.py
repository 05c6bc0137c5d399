"""RMS norm after its residual addition, rounded to float8 for the product that reads it: one pass over memory.

What `triton_norm.rms_norm` and then `triton_quantise` compute, to the bit but for the order of a row's sum of squares. The
factors that a product left are applied in float32, without the rounding that `triton_quantise.rescale` does in between.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from shoal_engine.kernels.triton_jit import jit, jit_once
from shoal_engine.kernels.triton_norm import MAX_WIDTH, added, normed, warps_of
from shoal_engine.kernels.triton_quantise import empty_groups, empty_rows, float8, scale_of
from shoal_engine.quantization.fp8 import BLOCK

_BLOCK = tl.constexpr(BLOCK)


@jit
def _as_stored(value, like):  # type: ignore[no-untyped-def]
    """As two kernels would: rounded to the model's dtype before it is scaled."""
    return value.to(like.dtype.element_ty).to(tl.float32)


@jit
def _norm_rows(  # type: ignore[no-untyped-def]
    x, row_scale, column_scale, residual, weight, values, scales, width, eps, block: tl.constexpr, scaled: tl.constexpr
):  # fmt: skip
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    inside, at = columns < width, row * width + columns
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if scaled:
        value *= tl.load(row_scale + row) * tl.load(column_scale + columns, mask=inside, other=0.0)
    value = added(value, residual, at, inside)
    squares = tl.sum(value * value, 0)
    value = _as_stored(normed(value, squares, weight, columns, inside, width, eps), residual)
    scale = scale_of(value, 0)
    tl.store(values + at, float8(value, scale, values), mask=inside)
    tl.store(scales + row, scale)


@jit_once("padded_rows")
def _norm_groups(  # type: ignore[no-untyped-def]
    x, residual, weight, values, scales, width, eps, padded_rows, groups: tl.constexpr
):
    """scales [width / 128, padded_rows]."""
    row, group = tl.program_id(0).to(tl.int64), tl.arange(0, groups)
    columns = group[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]
    inside, at = columns < width, row * width + columns
    value = added(tl.load(x + at, mask=inside, other=0.0).to(tl.float32), residual, at, inside)
    squares = tl.sum(tl.sum(value * value, 1), 0)
    value = _as_stored(normed(value, squares, weight, columns, inside, width, eps), residual)
    scale = scale_of(value, 1)
    tl.store(values + at, float8(value, scale[:, None], values), mask=inside)
    tl.store(scales + group.to(tl.int64) * padded_rows + row, scale, mask=group * _BLOCK < width)


def norm_rows(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, factors: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """residual [T, H] += x [T, H] in place -> `quantise_rows` of its norm times weight [H].

    factors: float32 [T, 1] and [H], which x still wants. Raises ValueError for operands that do not fit one another.
    """
    x, (rows, width) = _checked(x, residual, weight), x.shape
    values, scales = empty_rows(rows, width, x.device)
    block = triton.next_power_of_2(width)
    if rows > 0:
        _norm_rows[(rows,)](
            x, *(factors or (x, x)), residual, weight, values, scales, width, eps, block=block,
            scaled=factors is not None, num_warps=warps_of(block),
        )  # fmt: skip
    return values, scales


def norm_groups(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `norm_rows` -> `quantise_groups`."""
    x, (rows, width) = _checked(x, residual, weight), x.shape
    values, scales = empty_groups(rows, width, x.device)
    groups = triton.next_power_of_2(width // BLOCK)
    if rows > 0:
        _norm_groups[(rows,)](
            x, residual, weight, values, scales, width, eps, len(values), groups=groups,
            num_warps=warps_of(groups * BLOCK),
        )  # fmt: skip
    return values, scales.t()


def _checked(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    if x.shape[-1] > MAX_WIDTH:
        raise ValueError(f"a row of {x.shape[-1]} elements does not fit one program, at most {MAX_WIDTH}")
    if residual.shape != x.shape or not residual.is_contiguous():
        raise ValueError("the residual must be contiguous and of the shape of x")
    if weight.shape != x.shape[-1:] or not weight.is_contiguous():
        raise ValueError(f"expected a contiguous gain of {x.shape[-1]}, got {list(weight.shape)}")
    return x.contiguous()
