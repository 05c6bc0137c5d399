"""Products whose result for a row does not depend on the other rows, not in its last bit: what `--deterministic` runs.

Chosen instead of `products.matrix_product`, whose layouts and libraries look at how many rows there are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoal_engine.errors import ModelLoadError
from shoal_engine.kernels.cpu_build import BuildError
from shoal_engine.layers.products import (
    PACKED_FOR_ROWS,
    Matrix,
    MatrixProduct,
    PackedProduct,
    QuantisedBlocks,
    QuantisedProduct,
    pack_blocks,
)


class InvariantProduct:
    """On a GPU: one Triton kernel whatever the number of rows. Hides its weight from kernels that would fuse it."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        from shoal_engine.kernels.triton_invariant import invariant_linear  # a CPU does without Triton

        self._weight = weight.contiguous()
        self._bias = bias
        self._multiply = invariant_linear

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiply(x, self._weight, self._bias)


class FixedRowsProduct:
    """On a CPU: oneDNN chooses its loops by the number of rows, so it is always asked for the same, the last padded."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.fixed = PackedProduct(weight, bias)

    def __call__(self, x: Tensor) -> Tensor:
        missing = -x.shape[0] % PACKED_FOR_ROWS
        padded = torch.cat((x, x.new_zeros((missing, x.shape[1])))) if missing else x
        parts = [self.fixed(rows) for rows in torch.split(padded, PACKED_FOR_ROWS)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[: x.shape[0]]


def invariant_product(matrix: Matrix, bias: Tensor | None = None) -> MatrixProduct:
    """What `products.matrix_product` is otherwise. Raises ModelLoadError: there is none on this CPU."""
    if matrix.device.type != "cpu":
        return InvariantProduct(matrix.dense(), bias)
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        raise ModelLoadError(
            "--deterministic needs a torch with oneDNN on a CPU; leave it out, or install another build of torch"
        )
    if isinstance(matrix.stored, QuantisedBlocks):
        try:
            packed = pack_blocks(matrix.stored, matrix.out_features, matrix.in_features)
        except BuildError as error:
            raise ModelLoadError(f"--deterministic needs the compiled CPU kernels: {error}") from error
        if packed is not None:  # each row by itself, as c/linear.c does; no dense copy for many rows
            return QuantisedProduct(packed, None, bias)
    return FixedRowsProduct(matrix.dense(), bias)
