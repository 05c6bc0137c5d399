"""A row's product is the plain one, and has the same bits alone, among others and at any place."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from shoal_engine.errors import ModelLoadError
from shoal_engine.kernels.cpu_build import BuildError
from shoal_engine.layers import invariant_product as module
from shoal_engine.layers.invariant_product import invariant_product
from shoal_engine.layers.products import Matrix, MatrixProduct, PackedProduct, QuantisedBlocks

SHAPES = [(64, 32), (80, 96), (1024, 3072), (2048, 512)]


def matrix(weight: Tensor, blocks: QuantisedBlocks | None = None) -> Matrix:
    return Matrix(weight.shape[0], weight.shape[1], weight.dtype, weight.device, lambda: weight, blocks)


def quantised(block_type: str) -> tuple[QuantisedBlocks, Tensor]:
    """Random weights in blocks, and what the gguf package reads from them."""
    kind = gguf.GGMLQuantizationType[block_type]
    rows = gguf.quants.quantize(np.random.default_rng(0).standard_normal((80, 96), dtype=np.float32), kind)
    return QuantisedBlocks(block_type, torch.from_numpy(rows)), torch.from_numpy(
        gguf.quants.dequantize(rows, kind)
    )


def assert_invariant(product: MatrixProduct, x: Tensor) -> None:
    whole = product(x)
    for first, count in [
        (0, 1),
        (1, 1),
        (15, 1),
        (16, 1),
        (17, 2),
        (3, 13),
        (5, 16),
        (7, 17),
        (31, 40),
        (1, 98),
    ]:
        assert torch.equal(product(x[first : first + count]), whole[first : first + count]), (first, count)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_dense_weights(shape: tuple[int, int], dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    weight, bias, x = (torch.randn(*size).to(dtype) for size in (shape, shape[:1], (100, shape[1])))
    product = invariant_product(matrix(weight), bias)
    want = x.double() @ weight.double().T + bias.double()
    assert (product(x).double() - want).abs().max() / want.abs().max() < tolerance
    assert_invariant(product, x)


def test_other_rows_may_hold_anything() -> None:
    torch.manual_seed(0)
    product, x = invariant_product(matrix(torch.randn(96, 64))), torch.randn(20, 64)
    whole = product(x)
    x[4:] = float("nan")
    assert torch.equal(product(x)[:4], whole[:4])


def test_the_product_that_is_not_fixed_is_seen() -> None:
    """So the check can fail: oneDNN's own choice for few and for many rows sums a long row in another order."""
    torch.manual_seed(0)
    weight, x = torch.randn(1024, 3072), torch.randn(100, 3072)
    with pytest.raises(AssertionError):
        assert_invariant(PackedProduct(weight), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block_type", ["Q4_0", "Q8_0", "Q5_1"])
def test_weights_in_blocks(block_type: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    blocks, weight = quantised(block_type)
    x = torch.randn(100, weight.shape[1]).to(dtype)
    product = invariant_product(matrix(weight.to(dtype), blocks))
    want = x.float() @ weight.T
    assert (product(x).float() - want).abs().max() / want.abs().max() < 1e-2
    assert_invariant(product, x)


def test_no_rows_and_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(blocks: QuantisedBlocks, outputs: int, inputs: int) -> None:
        raise BuildError("no cc")

    assert invariant_product(matrix(torch.zeros(8, 4)))(torch.zeros(0, 4)).shape == (0, 8)
    monkeypatch.setattr(module, "pack_blocks", broken)
    with pytest.raises(ModelLoadError, match="--deterministic needs the compiled"):
        invariant_product(matrix(torch.zeros(80, 96), quantised("Q4_0")[0]))
