"""Run layouts of a weight on an NVIDIA GPU: as it is, or float8 e4m3 with scales. Which kernel serves is `kernels`' tables'.

Every product keeps `weight` [N, K] and `bias` [N] or None where the fused decode kernels find them, and `scale` [N] or None.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from shoal_engine.kernels import triton_linear
from shoal_engine.kernels.fp8_table import Fp8Choice, Fp8Way, choose_fp8, wide_tile
from shoal_engine.kernels.gemm_table import MAX_ROWS, GemmChoice
from shoal_engine.kernels.gpu import kind_of, on_gpu
from shoal_engine.kernels.triton_norm import silu_mul
from shoal_engine.kernels.triton_norm_rounding import norm_groups, norm_rows
from shoal_engine.kernels.triton_quantise import (
    launches,
    quantise_groups,
    quantise_rows,
    rescale,
    silu_mul_rows,
)
from shoal_engine.layers.addend import Addend, Unscaled, numbers_of, with_factors
from shoal_engine.layers.norm import RMSNorm
from shoal_engine.quantization.fp8 import BLOCK, Fp8Weight

_GROUPS_TOGETHER = 4  # cuBLASLt reads the scales of a weight's blocks in rows of whole 16 bytes


class Bf16Product:
    """A bfloat16 weight: Triton for few rows, where reading it is the time, cuBLAS for many."""

    scale = None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return triton_linear.linear(x, self.weight)
        if x.shape[0] > MAX_ROWS:
            return functional.linear(x, self.weight, self.bias)
        return triton_linear.linear(x, self.weight).add_(self.bias)


class Fp8Product:
    """A float8 weight with a scale for each channel.

    Few rows widen it in registers and keep their own bits; more are rounded to float8 by token and multiplied in it, unless
    the checkpoint wants its input left alone.
    """

    def __init__(self, stored: Fp8Weight, bias: Tensor | None = None) -> None:
        self.weight = stored.values
        self.scale = stored.scale
        self.bias = bias
        self._stored = stored
        self._one = torch.ones((), dtype=torch.float32, device=stored.scale.device)

    def __call__(self, x: Tensor) -> Tensor:
        choice = self._rounding(x.shape[0])
        if choice is None:
            return self._unrounded(x)
        return self.multiply_rounded(*quantise_rows(x), x.dtype, choice)

    def after_norm(self, x: Addend, residual: Tensor, norm: RMSNorm) -> Tensor:
        """See `JoinedProduct`: many rows are rounded as they are normalised."""
        numbers, factors = with_factors(x)
        choice = self._rounding(numbers.shape[0])
        if choice is None or not launches(numbers):
            return self(norm.add(x, residual))
        values, scales = norm_rows(numbers, residual, norm.weight, norm.eps, factors)
        return self.multiply_rounded(values, scales, numbers.dtype, choice)

    def gated(self, gate_up: Tensor) -> Addend:
        """See `JoinedProduct`: many rows are rounded as they are computed."""
        choice = self._rounding(gate_up.shape[0])
        if choice is None:
            return self._unrounded(silu_mul(gate_up))
        return self._addend(*silu_mul_rows(gate_up), gate_up.dtype, choice)

    def addend(self, x: Tensor) -> Addend:
        choice = self._rounding(x.shape[0])
        return self._unrounded(x) if choice is None else self._addend(*quantise_rows(x), x.dtype, choice)

    def _addend(self, values: Tensor, scales: Tensor, dtype: torch.dtype, by: Fp8Choice) -> Addend:
        """The next norm reads the product anyway, and applies its factors then."""
        if by.way is Fp8Way.TENSOR and self.bias is None:
            return Unscaled(self._by_torch(values, self._one, self._one, dtype), (scales, self.scale))
        return self.multiply_rounded(values, scales, dtype, by)

    def _rounding(self, rows: int) -> Fp8Choice | None:
        """The way to multiply so many rows when it rounds them."""
        n, k = self.weight.shape
        choice = choose_fp8(rows, n, k, in_blocks=False)
        rounds = choice.way is not Fp8Way.WIDE and self._stored.round_input and _aligned(n, k)
        return choice if rounds else None

    def _unrounded(self, x: Tensor) -> Tensor:
        choice = choose_fp8(x.shape[0], *self.weight.shape, in_blocks=False)
        return _unrounded(x, self._stored, self.bias, choice.tile if choice.way is Fp8Way.WIDE else None)

    def multiply_rounded(self, values: Tensor, scales: Tensor, dtype: torch.dtype, by: Fp8Choice) -> Tensor:
        """values [M, K] float8_e4m3fn with scales [M, 1] float32 -> [M, N]."""
        if by.way is Fp8Way.TENSOR:
            # The sum of K products of at most 448 x 448 is far inside bfloat16's range.
            product = self._by_torch(values, self._one, self._one, dtype)
            return rescale(product, scales, self.scale, self.bias)
        if by.tile is not None:
            product = triton_linear.launch_rounded(values, scales, self.weight, self.scale, dtype, by.tile)
        else:
            product = self._by_torch(values, scales, self.scale[None, :], dtype)
        return _added(product, self.bias)

    def _by_torch(self, values: Tensor, scale_a: Tensor, scale_b: Tensor, dtype: torch.dtype) -> Tensor:
        return torch._scaled_mm(
            values, self.weight.t(), scale_a=scale_a, scale_b=scale_b, out_dtype=dtype, use_fast_accum=True
        )


class BlockFp8Product:
    """A float8 weight with a scale for each 128 x 128; the activations of many rows are rounded in groups of 128.

    Without `scale`: the fused decode kernels know no such weight.
    """

    def __init__(self, stored: Fp8Weight, bias: Tensor | None = None) -> None:
        self.weight = stored.values
        self.bias = bias
        self._stored = stored
        self._block_scale = _padded_scale(stored.scale)

    def __call__(self, x: Tensor) -> Tensor:
        rows, (n, k) = x.shape[0], self.weight.shape
        if not self._rounds(x):
            return _unrounded(x, self._stored, self.bias, choose_fp8(rows, n, k, in_blocks=True).tile)
        return self.multiply_rounded(*quantise_groups(x), x.dtype)[:rows]

    def after_norm(self, x: Addend, residual: Tensor, norm: RMSNorm) -> Tensor:
        """See `JoinedProduct`: many rows are rounded as they are normalised."""
        numbers = numbers_of(x)
        if not self._rounds(numbers) or not launches(numbers):
            return self(norm.add(numbers, residual))
        values, scales = norm_groups(numbers, residual, norm.weight, norm.eps)
        return self.multiply_rounded(values, scales, numbers.dtype)[: numbers.shape[0]]

    def gated(self, gate_up: Tensor) -> Addend:
        return self(silu_mul(gate_up))

    def addend(self, x: Tensor) -> Addend:
        return self(x)

    def _rounds(self, x: Tensor) -> bool:
        n, k = self.weight.shape
        choice = choose_fp8(x.shape[0], n, k, in_blocks=True)
        return choice.way is not Fp8Way.WIDE and self._stored.round_input and _in_whole_blocks(x, n, k)

    def multiply_rounded(self, values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """values [P, K] float8_e4m3fn with scales [P, K / 128] float32, strides (1, P) -> [P, N]; P a multiple of 4."""
        product: Tensor = functional.scaled_mm(
            values,
            self.weight.t(),
            scales,
            functional.ScalingType.BlockWise1x128,
            self._block_scale,
            functional.ScalingType.BlockWise128x128,
            output_dtype=dtype,
        )
        return _added(product, self.bias)


def float8_runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the GPU converts and multiplies float8: Ada, Hopper and later, for models in bfloat16."""
    return device.type != "cpu" and dtype == torch.bfloat16 and kind_of(device).capability >= (8, 9)


def fp8_product(stored: Fp8Weight, bias: Tensor | None = None) -> Fp8Product | BlockFp8Product:
    return BlockFp8Product(stored, bias) if stored.in_blocks else Fp8Product(stored, bias)


def _aligned(n: int, k: int) -> bool:
    """cuBLASLt's float8 products want 16-byte rows."""
    return n % 16 == 0 and k % 16 == 0


def _in_whole_blocks(x: Tensor, n: int, k: int) -> bool:
    """torch offers products scaled in blocks on Hopper alone."""
    hopper = not on_gpu(x) or kind_of(x.device).capability[0] == 9
    return hopper and n % BLOCK == 0 and k % BLOCK == 0


def _padded_scale(scale: Tensor) -> Tensor:
    """scale [N / 128, K / 128] -> [K / 128 rounded up to 4, N / 128] with strides (1, its height)."""
    width = -(-scale.shape[1] // _GROUPS_TOGETHER) * _GROUPS_TOGETHER
    padded = scale.new_zeros((scale.shape[0], width))
    padded[:, : scale.shape[1]] = scale
    return padded.t()


def _unrounded(x: Tensor, stored: Fp8Weight, bias: Tensor | None, tile: GemmChoice | None) -> Tensor:
    """Inputs keep their bits. tile: what the table names for so few rows. Many write the weight out in x's type each time:
    those of checkpoints that want it so, and of rare shapes."""
    rows, (n, k) = x.shape[0], stored.values.shape
    if rows > MAX_ROWS:
        return functional.linear(x, stored.dequantise(x.dtype), bias)
    tile = tile or wide_tile(rows, n, k, stored.in_blocks)
    return _added(triton_linear.launch(x, stored.values, stored.scale, tile), bias)


def _added(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y.add_(bias)
