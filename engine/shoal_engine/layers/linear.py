"""Linear layers over a matrix product that was chosen at load time. Knows no checkpoint format."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

# oneDNN lays a weight out for an expected number of rows. Measured with SmolLM2 on two Zen 5 cores: the layout for 16
# rows is the fastest at 1, 4, 16 and 64 rows and within 1 % of the best at 512, so one packed copy serves all batches.
PACKED_FOR_ROWS = 16


class MatrixProduct(Protocol):
    """y = x W^T + b for one weight, in one run layout."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [M, in] -> [M, out], same dtype."""


class DenseProduct:
    """The weight as it is; cuBLAS or the CPU's BLAS multiplies."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class PackedProduct:
    """The weight in oneDNN's own blocked layout, packed once: 2 to 4 times faster than packing at every call."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS)
        self.bias = bias
        self.multiply = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = self.multiply(x, self.weight, self.bias, "none", [], "")
        return product


def dense_product(weight: Tensor, bias: Tensor | None = None) -> MatrixProduct:
    """The fastest product for an unquantised weight [out, in] on its device."""
    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return PackedProduct(weight, bias)
    return DenseProduct(weight, bias)


class Linear:
    """y = x W^T + b; `out_sizes` tells how several checkpoint matrices were stacked into this one."""

    def __init__(self, product: MatrixProduct) -> None:
        self.product = product

    def __call__(self, x: Tensor) -> Tensor:
        return self.product(x)
