"""The operands of the fused decode kernels, as frozen values: a weight as it lies in memory, and a norm before a product."""

from __future__ import annotations

from dataclasses import dataclass

import triton.language as tl
from torch import Tensor

# Where all products of a step multiply in float16, x is written so: a sixteenth of it, so that a million still fits.
SIXTEENTH = tl.constexpr(1 / 16)


@dataclass(frozen=True, slots=True)
class FusedWeight:
    """values [N, K] contiguous, in the model's dtype or float8_e4m3fn with scale [N] float32; bias [N] or none."""

    values: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None

    @property
    def out_features(self) -> int:
        return int(self.values.shape[0])

    @property
    def in_features(self) -> int:
        return int(self.values.shape[1])

    def scale_or(self, stand_in: Tensor) -> Tensor:
        """A kernel's pointer must point somewhere, read or not."""
        return stand_in if self.scale is None else self.scale

    def bias_or(self, stand_in: Tensor) -> Tensor:
        return stand_in if self.bias is None else self.bias


@dataclass(frozen=True, slots=True)
class NormInput:
    """RMS norm of a product's input: gain [K], and eps inside the root."""

    gain: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Stream:
    """The residual stream between kernels of a step of up to R rows.

    hidden [R, H]: the residual itself; scaled [R, H]: it times the gain of the norm that comes next, SIXTEENTH of that in
    float16; squares [R * tiles] float32: for each row the sum of squares of each tile of H that one program wrote.
    """

    hidden: Tensor
    scaled: Tensor
    squares: Tensor


@dataclass(frozen=True, slots=True)
class PartialSums:
    """What programs that share a tile leave for the last of them.

    sums [floats] float32; arrivals [tiles] int32, zero between launches.
    """

    sums: Tensor
    arrivals: Tensor
