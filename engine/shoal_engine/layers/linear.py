"""A linear layer over a matrix product that was chosen at load time. Knows no run layout and no checkpoint format."""

from __future__ import annotations

from torch import Tensor

from shoal_engine.layers.products import MatrixProduct


class Linear:
    """y = x W^T + b."""

    def __init__(self, product: MatrixProduct) -> None:
        self.product = product

    def __call__(self, x: Tensor) -> Tensor:
        """x [M, in] -> [M, out]."""
        return self.product(x)
