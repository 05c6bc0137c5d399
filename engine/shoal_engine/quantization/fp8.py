"""Matrices of float8 e4m3 numbers with their scales: what they mean, how they are made from others and stacked.

Three formats, told apart by the shape of the scale: one factor for the matrix, one for each output channel, one for each
block of 128 x 128. The first becomes the second here. How a product is computed from them is `layers/gpu_products.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shoal_engine.config import FP8_BLOCK

BLOCK = FP8_BLOCK
LARGEST = torch.finfo(torch.float8_e4m3fn).max  # 448
# A channel of zeros has a scale all the same. Far below every weight, and its reciprocal times 448 is finite.
SMALLEST_PEAK = 1e-12


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """W [N, K]. values [N, K] float8_e4m3fn, scale float32 in one of two shapes:

    [N]: W[n, k] = values[n, k] * scale[n];
    [ceil(N / 128), ceil(K / 128)]: W[n, k] = values[n, k] * scale[n // 128, k // 128].
    round_input: whether its products may round their input to float8 too, as the checkpoint's makers intend.
    """

    values: Tensor
    scale: Tensor
    round_input: bool = True

    @property
    def in_blocks(self) -> bool:
        return self.scale.dim() == 2

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """W [N, K], each product rounded to `dtype` once."""
        wide = self.values.float()
        if not self.in_blocks:
            return wide.mul_(self.scale[:, None]).to(dtype)
        rows = self.scale.repeat_interleave(BLOCK, 0)[: wide.shape[0]]
        for index in range(rows.shape[1]):
            wide[:, index * BLOCK : (index + 1) * BLOCK].mul_(rows[:, index, None])
        return wide.to(dtype)

    def to(self, device: torch.device) -> Fp8Weight:
        return replace(self, values=self.values.to(device), scale=self.scale.to(device))


def read_scaled(values: Tensor, scale: Tensor, round_input: bool = True) -> Fp8Weight | None:
    """values [N, K] as stored, and the scale beside it: a scalar, [1], [N], [N, 1] or by blocks. None: no such shape."""
    num_rows, num_columns = values.shape
    factors = scale.float()
    if factors.numel() == 1:
        return Fp8Weight(values, factors.reshape(1).repeat(num_rows), round_input)
    if factors.shape in ((num_rows,), (num_rows, 1)):
        return Fp8Weight(values, factors.reshape(num_rows), round_input)
    if factors.shape == (-(-num_rows // BLOCK), -(-num_columns // BLOCK)):
        return Fp8Weight(values, factors.contiguous(), round_input)
    return None


def quantise_channels(weight: Tensor) -> Fp8Weight:
    """weight [N, K] of any float type, so that each row's largest element becomes 448."""
    wide = weight.float()
    scale = wide.abs().amax(1).clamp_(min=SMALLEST_PEAK) / LARGEST
    values = (wide / scale[:, None]).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return Fp8Weight(values, scale)


def stack(parts: Sequence[Fp8Weight]) -> Fp8Weight | None:
    """One matrix of several that read the same input. None where the scales cannot be stacked: blocks that would straddle
    two parts, or parts of two formats."""
    if len({(part.in_blocks, part.round_input) for part in parts}) > 1:
        return None
    if parts[0].in_blocks and any(part.values.shape[0] % BLOCK for part in parts[:-1]):
        return None
    return concatenate(parts)


def concatenate(parts: Sequence[Fp8Weight]) -> Fp8Weight:
    """`stack` of parts that are known to fit."""
    if len(parts) == 1:
        return parts[0]
    return Fp8Weight(
        # Not every device concatenates float8, all do bytes.
        torch.cat([part.values.view(torch.uint8) for part in parts]).view(torch.float8_e4m3fn),
        torch.cat([part.scale for part in parts]),
        parts[0].round_input,
    )
