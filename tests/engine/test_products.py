"""Whatever run layout a weight gets, its product equals the plain one with the dequantised weight."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from shoal_engine.kernels.cpu_linear import MAX_M
from shoal_engine.layers.products import (
    Matrix,
    PackedProduct,
    QuantisedBlocks,
    QuantisedProduct,
    matrix_product,
)

OUT, IN = 80, 96


def quantised(block_type: str, seed: int) -> tuple[QuantisedBlocks, Tensor]:
    """Random weights in blocks, and what the gguf package reads from them."""
    numbers = np.random.default_rng(seed).standard_normal((OUT, IN), dtype=np.float32)
    kind = gguf.GGMLQuantizationType[block_type]
    rows = gguf.quants.quantize(numbers, kind)
    return QuantisedBlocks(block_type, torch.from_numpy(rows)), torch.from_numpy(
        gguf.quants.dequantize(rows, kind)
    )


def matrix(weight: Tensor, stored: QuantisedBlocks | None = None) -> Matrix:
    return Matrix(*weight.shape, weight.dtype, weight.device, lambda: weight, stored)


@pytest.mark.parametrize("rows", [1, 5, MAX_M, MAX_M + 1, 100])
@pytest.mark.parametrize("block_type", ["Q4_0", "Q4_1", "Q8_0", "Q5_1"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_a_quantised_product_equals_the_dense_one(
    block_type: str, rows: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(rows)
    blocks, weight = quantised(block_type, rows)
    x, bias = torch.randn(rows, IN).to(dtype), torch.randn(OUT).to(dtype)
    product = matrix_product(matrix(weight.to(dtype), blocks), bias)
    want = x.float() @ weight.T + bias.float()
    error = (product(x).float() - want).abs().max() / want.abs().max()
    assert error < tolerance


@pytest.mark.parametrize(
    ("block_type", "layout"),
    [
        ("Q4_0", QuantisedProduct),
        ("Q4_1", QuantisedProduct),
        ("Q8_0", QuantisedProduct),
        ("Q5_1", PackedProduct),
    ],
)
def test_small_batches_read_the_stored_bits_where_a_kernel_knows_them(block_type: str, layout: type) -> None:
    blocks, weight = quantised(block_type, 0)
    assert type(matrix_product(matrix(weight, blocks))) is layout


def test_without_memory_for_a_dense_copy_the_stored_bits_serve_any_number_of_rows() -> None:
    blocks, weight = quantised("Q4_1", 0)

    def dense() -> Tensor:
        raise AssertionError("nobody needs the numbers themselves")

    unread = Matrix(OUT, IN, weight.dtype, weight.device, dense, blocks)
    product = matrix_product(unread, keep_dense=False)
    assert isinstance(product, QuantisedProduct)
    assert product.many is None
    x = torch.randn(3 * MAX_M + 1, IN)
    assert torch.allclose(product(x), x @ weight.T, atol=1e-4)


def test_plain_weights_are_packed_once() -> None:
    assert type(matrix_product(matrix(torch.randn(OUT, IN)))) is PackedProduct
