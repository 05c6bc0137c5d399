"""Root-mean-square normalisation, alone or fused with the residual addition before it."""

from __future__ import annotations

from torch import Tensor

from shoal_engine.kernels.interface import Kernels
from shoal_engine.layers.addend import Addend, numbers_of


class RMSNorm:
    def __init__(self, weight: Tensor, eps: float, kernels: Kernels) -> None:
        self.weight = weight
        self.eps = eps
        self.kernels = kernels

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, H] -> [T, H]."""
        return self.kernels.rms_norm(x, self.weight, self.eps)

    def add(self, x: Addend, residual: Tensor) -> Tensor:
        """residual += x in place, then normalise it."""
        return self.kernels.add_rms_norm(numbers_of(x), residual, self.weight, self.eps)
