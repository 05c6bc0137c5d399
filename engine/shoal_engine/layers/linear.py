"""A linear layer over a matrix product that was chosen at load time. Knows no run layout and no checkpoint format."""

from __future__ import annotations

from torch import Tensor

from shoal_engine.kernels.interface import Kernels
from shoal_engine.layers.addend import Addend
from shoal_engine.layers.norm import RMSNorm
from shoal_engine.layers.products import JoinedProduct, MatrixProduct


class Linear:
    """y = x W^T + b, together with what stands before it or behind it where its product knows how."""

    def __init__(self, product: MatrixProduct) -> None:
        self.product = product
        self._joined = product if isinstance(product, JoinedProduct) else None

    def __call__(self, x: Tensor) -> Tensor:
        """x [M, in] -> [M, out]."""
        return self.product(x)

    def after_norm(self, x: Addend, residual: Tensor, norm: RMSNorm) -> Tensor:
        """residual [M, in] += x in place, then y of its norm [M, out]."""
        if self._joined is not None:
            return self._joined.after_norm(x, residual, norm)
        return self.product(norm.add(x, residual))

    def gated(self, gate_up: Tensor, kernels: Kernels) -> Addend:
        """gate_up [M, 2 * in], gates before ups -> y of silu(gate) * up [M, out]."""
        if self._joined is not None:
            return self._joined.gated(gate_up)
        return self.product(kernels.silu_mul(gate_up))

    def addend(self, x: Tensor) -> Addend:
        """x [M, in] -> y [M, out], to be added to the residual."""
        return self.product(x) if self._joined is None else self._joined.addend(x)
