"""The run layouts of a weight: how y = x W^T + b is computed on its device, and which layout is chosen.

Knows block types by name and no files. Every layout reads float32 or bfloat16 activations and returns the same type.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from shoal_engine.kernels.cpu_build import BuildError, load_library
from shoal_engine.kernels.cpu_linear import MAX_M, PackedLinear, WeightKind, pack_q4, pack_q8_0
from shoal_engine.layers.addend import Addend
from shoal_engine.layers.norm import RMSNorm
from shoal_engine.quantization.fp8 import Fp8Weight

# oneDNN lays a weight out for an expected number of rows. Measured with SmolLM2 on two Zen 5 cores: the layout for 16
# rows is the fastest at 1, 4, 16 and 64 rows and within 1 % of the best at 512, so one packed copy serves all batches.
PACKED_FOR_ROWS = 16


class MatrixProduct(Protocol):
    """y = x W^T + b for one weight, in one run layout."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [M, in] -> [M, out], same dtype."""


@runtime_checkable
class JoinedProduct(Protocol):
    """A product that prepares its input in one pass with what makes it, and may leave factors to what reads its result."""

    def after_norm(self, x: Addend, residual: Tensor, norm: RMSNorm) -> Tensor:
        """residual [M, in] += x in place, then norm(residual) W^T + b [M, out]."""

    def gated(self, gate_up: Tensor) -> Addend:
        """gate_up [M, 2 * in] -> (silu(gate) * up) W^T + b [M, out], gates before ups."""

    def addend(self, x: Tensor) -> Addend:
        """x [M, in] -> x W^T + b [M, out]."""


@dataclass(frozen=True, slots=True)
class QuantisedBlocks:
    """A matrix as GGUF stores it: `rows` uint8 [out, bytes of a row] in blocks of type `block_type`."""

    block_type: str
    rows: Tensor


StoredMatrix = QuantisedBlocks | Fp8Weight


@dataclass(frozen=True, slots=True)
class Matrix:
    """W [out, in] before its run layout is chosen, for a model in `dtype` on `device`.

    dense() reads it in that type and place; stored: the same numbers as the checkpoint holds them, where it is quantised.
    """

    out_features: int
    in_features: int
    dtype: torch.dtype
    device: torch.device
    dense: Callable[[], Tensor]
    stored: StoredMatrix | None = None


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


class QuantisedProduct:
    """Few rows read the weight in the bits it is stored in, a quarter of the memory traffic; many rows a dense copy.

    Decoding is bound by reading weights, prefill by arithmetic. `many` computes with the dense copy; None saves its
    memory, and products of long prompts take 13 to 21 % longer.
    """

    def __init__(self, few: PackedLinear, many: MatrixProduct | None, bias: Tensor | None = None) -> None:
        self.few = few
        self.many = many
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        if self.many is None or x.shape[0] <= MAX_M:
            return self.few.matmul(x, self.bias)
        return self.many(x)


def matrix_product(matrix: Matrix, bias: Tensor | None = None, *, keep_dense: bool = True) -> MatrixProduct:
    """The fastest product on its device. keep_dense: whether memory allows a dense copy beside the stored blocks."""
    if matrix.device.type != "cpu":
        return _gpu_product(matrix, bias)
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return DenseProduct(matrix.dense(), bias)
    packed = None
    if isinstance(matrix.stored, QuantisedBlocks) and _compiled():
        packed = pack_blocks(matrix.stored, matrix.out_features, matrix.in_features)
    if packed is not None and not keep_dense:
        return QuantisedProduct(packed, None, bias)
    dense = PackedProduct(matrix.dense(), bias)
    return dense if packed is None else QuantisedProduct(packed, dense, bias)


def _gpu_product(matrix: Matrix, bias: Tensor | None) -> MatrixProduct:
    from shoal_engine.layers import gpu_products  # needs Triton, which a CPU does without

    if isinstance(matrix.stored, Fp8Weight) and gpu_products.float8_runs(matrix.device, matrix.dtype):
        return gpu_products.fp8_product(matrix.stored.to(matrix.device), bias)
    if matrix.dtype == torch.bfloat16:
        return gpu_products.Bf16Product(matrix.dense(), bias)
    return DenseProduct(matrix.dense(), bias)


@functools.cache
def _compiled() -> bool:
    """Whether this machine can compile the C kernels; asked once, an attempt that fails takes seconds."""
    try:
        load_library()
    except BuildError:
        return False
    return True


def pack_blocks(blocks: QuantisedBlocks, out_features: int, in_features: int) -> PackedLinear | None:
    """What runs in the bits it is stored in; None for block types that are only ever run dense."""
    if blocks.block_type == "Q8_0":
        return pack_q8_0(blocks.rows, out_features, in_features)
    if blocks.block_type in ("Q4_0", "Q4_1"):
        return pack_q4(blocks.rows, WeightKind[blocks.block_type], out_features, in_features)
    return None
