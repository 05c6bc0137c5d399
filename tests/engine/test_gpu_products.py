"""Products of float8 weights, in Triton's interpreter and torch's CPU kernels, against float64 of the dequantised weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from shoal_engine.kernels import triton_linear
from shoal_engine.kernels.fp8_table import Fp8Choice, Fp8Way
from shoal_engine.kernels.gemm_table import GemmChoice, Method
from shoal_engine.kernels.gpu import GpuKind
from shoal_engine.kernels.reference import ReferenceKernels
from shoal_engine.kernels.triton_quantise import quantise_groups_reference, quantise_rows_reference
from shoal_engine.layers import gpu_products
from shoal_engine.layers.addend import Unscaled, numbers_of
from shoal_engine.layers.gpu_products import Bf16Product, BlockFp8Product, Fp8Product, fp8_product
from shoal_engine.layers.linear import Linear
from shoal_engine.layers.mlp import GatedMLP
from shoal_engine.layers.norm import RMSNorm
from shoal_engine.layers.products import DenseProduct, JoinedProduct, Matrix, matrix_product
from shoal_engine.quantization.fp8 import Fp8Weight, quantise_channels

EXACT_INPUT = 8e-3  # the interpreter truncates to bfloat16
ROUNDED_INPUT = 4e-2  # three bits of each activation


def error(got: Tensor, want: Tensor) -> float:
    assert got.dtype == torch.bfloat16
    assert got.shape == want.shape
    return float((got.double() - want).norm() / want.norm())


def channels(n: int, k: int) -> Fp8Weight:
    torch.manual_seed(n + k)
    return quantise_channels(torch.randn(n, k) * torch.logspace(-2, 1, n)[:, None])


def blocks(n: int, k: int, **options: Any) -> Fp8Weight:
    torch.manual_seed(n + k)
    scale = torch.rand(-(-n // 128), -(-k // 128)) * torch.logspace(-2, 1, -(-k // 128)) + 1e-3
    return Fp8Weight(torch.randn(n, k).mul(50).to(torch.float8_e4m3fn), scale, **options)


def some_norm(width: int) -> RMSNorm:
    return RMSNorm(torch.rand(width).add(0.5).bfloat16(), 1e-6, ReferenceKernels())


def exact(x: Tensor, stored: Fp8Weight, bias: Tensor | None) -> Tensor:
    return x.double() @ stored.dequantise(torch.float64).T + (0 if bias is None else bias.double())


def multiply_blocks_in_float64(monkeypatch: pytest.MonkeyPatch, stored: Fp8Weight) -> None:
    """torch multiplies rounded groups by scaled blocks on a GPU alone."""

    def multiplied(self: BlockFp8Product, values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        wide = values.double() * scales.double().repeat_interleave(128, 1)
        return exact(wide, stored, self.bias).to(dtype)

    monkeypatch.setattr(BlockFp8Product, "multiply_rounded", multiplied)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_bfloat16(rows: int, biased: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 96).bfloat16(), torch.randn(40, 96).bfloat16()
    bias = torch.randn(40).bfloat16() if biased else None
    want = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert error(Bf16Product(weight, bias)(x), want) <= EXACT_INPUT


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 32, 40, 270])
def test_a_scale_for_each_channel(rows: int, biased: bool) -> None:
    stored = channels(32, 96)
    x, bias = torch.randn(rows, 96).bfloat16(), torch.randn(32).bfloat16() if biased else None
    product = fp8_product(stored, bias)
    assert isinstance(product, Fp8Product)
    most = EXACT_INPUT if rows <= 8 else ROUNDED_INPUT
    assert error(product(x), exact(x, stored, bias)) <= most


@pytest.mark.parametrize("rows", [40, 270])
def test_rounding_the_input_is_the_only_loss(rows: int) -> None:
    """Against float64 of the rounded input the product is as near as bfloat16 lets it be."""
    stored = channels(32, 96)
    x = torch.randn(rows, 96).bfloat16()
    values, scales = quantise_rows_reference(x)
    want = exact(values.double() * scales.double(), stored, None)
    assert error(fp8_product(stored)(x), want) <= EXACT_INPUT


@pytest.mark.parametrize(
    "stored",
    [
        Fp8Weight(channels(32, 96).values, channels(32, 96).scale, round_input=False),
        channels(34, 90),
        blocks(128, 128, round_input=False),
        blocks(140, 72),
    ],
    ids=["as the checkpoint wants", "unaligned", "blocks, as the checkpoint wants", "broken blocks"],
)
@pytest.mark.parametrize("rows", [1, 60, 270])
def test_an_input_that_keeps_its_bits(stored: Fp8Weight, rows: int) -> None:
    x, bias = (
        torch.randn(rows, stored.values.shape[1]).bfloat16(),
        torch.randn(stored.values.shape[0]).bfloat16(),
    )
    assert error(fp8_product(stored, bias)(x), exact(x, stored, bias)) <= EXACT_INPUT


@pytest.mark.parametrize(
    ("n", "k", "rows", "split"), [(256, 256, 9, 1), (200, 136, 1, 1), (200, 136, 9, 3)], ids=str
)
def test_few_rows_with_a_scale_for_each_block(n: int, k: int, rows: int, split: int) -> None:
    stored, x = blocks(n, k), torch.randn(rows, k).bfloat16()
    for tile in ((64, 64), (32, 128)):
        choice = GemmChoice(Method.DOT, *tile, split, 4, 2)
        got = triton_linear.launch(x, stored.values, stored.scale, choice)
        assert error(got, exact(x, stored, None)) <= EXACT_INPUT
    assert error(fp8_product(stored)(x), exact(x, stored, None)) <= EXACT_INPUT


@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("rows", [1, 9])
def test_few_rows_rounded_by_our_kernel(rows: int, split: int) -> None:
    stored, x = channels(34, 200), torch.randn(rows, 200).bfloat16()
    values, scales = quantise_rows_reference(x)
    choice = GemmChoice(Method.DOT, 16, 64, split, 4, 2)
    got = triton_linear.launch_rounded(values, scales, stored.values, stored.scale, torch.bfloat16, choice)
    assert error(got, exact(values.double() * scales.double(), stored, None)) <= EXACT_INPUT


@pytest.mark.parametrize(
    "choice", [Fp8Choice(Fp8Way.TILE, GemmChoice(Method.DOT, 16, 32, 1, 4)), Fp8Choice(Fp8Way.ROWS)]
)
def test_the_way_that_the_table_names(monkeypatch: pytest.MonkeyPatch, choice: Fp8Choice) -> None:
    monkeypatch.setattr(gpu_products, "choose_fp8", lambda *_, **__: choice)
    stored, x, bias = channels(32, 96), torch.randn(9, 96).bfloat16(), torch.randn(32).bfloat16()
    values, scales = quantise_rows_reference(x)
    want = exact(values.double() * scales.double(), stored, bias)
    assert error(fp8_product(stored, bias)(x), want) <= EXACT_INPUT


@pytest.mark.parametrize("rows", [1, 40])
def test_a_gated_input(rows: int) -> None:
    stored, bias = channels(32, 96), torch.randn(32).bfloat16()
    gate_up = torch.randn(rows, 192).bfloat16()
    gate, up = gate_up.double().chunk(2, 1)
    product = fp8_product(stored, bias)
    assert isinstance(product, JoinedProduct)
    want = exact(torch.nn.functional.silu(gate) * up, stored, bias)
    assert error(numbers_of(product.gated(gate_up)), want) <= (
        2 * EXACT_INPUT if rows == 1 else ROUNDED_INPUT
    )


@pytest.mark.parametrize("rows", [1, 40, 270])
def test_an_input_that_is_normalised_first(rows: int) -> None:
    stored, bias, norm = channels(32, 96), torch.randn(32).bfloat16(), some_norm(96)
    x, residual = torch.randn(rows, 96).bfloat16(), torch.randn(rows, 96).bfloat16()
    product, total = fp8_product(stored, bias), residual.clone()
    assert isinstance(product, JoinedProduct)
    normed = norm.add(x, total)
    got = Linear(product).after_norm(x, residual, norm)
    torch.testing.assert_close(residual, total, rtol=2**-7, atol=0)  # the interpreter truncates
    assert error(got, exact(normed, stored, bias)) <= (EXACT_INPUT if rows == 1 else ROUNDED_INPUT)


@pytest.mark.parametrize("following", [channels(32, 128), blocks(128, 128)], ids=["channels", "blocks"])
@pytest.mark.parametrize("rows", [3, 100])
def test_factors_are_left_to_the_next_norm(
    monkeypatch: pytest.MonkeyPatch, rows: int, following: Fp8Weight
) -> None:
    multiply_blocks_in_float64(monkeypatch, following)
    stored, norm = channels(128, 64), some_norm(128)
    x, residual = torch.randn(rows, 64).bfloat16(), torch.randn(rows, 128).bfloat16()
    addend = Linear(fp8_product(stored)).addend(x)
    assert isinstance(addend, Unscaled) == (rows == 100)
    want = residual + exact(x, stored, None)
    normed = want * torch.rsqrt(want.square().mean(1, keepdim=True) + norm.eps) * norm.weight
    got = Linear(fp8_product(following)).after_norm(addend, residual, norm)
    assert error(residual, want) <= ROUNDED_INPUT
    assert error(got, exact(normed, following, None)) <= 2 * ROUNDED_INPUT


def test_the_last_norm_applies_factors_too() -> None:
    stored, norm = channels(96, 64), some_norm(96)
    x, residual = torch.randn(100, 64).bfloat16(), torch.randn(100, 96).bfloat16()
    want = residual + exact(x, stored, None)
    norm.add(Linear(fp8_product(stored)).addend(x), residual)
    assert error(residual, want) <= ROUNDED_INPUT


@pytest.mark.parametrize("rows", [1, 41])
def test_an_input_that_is_normalised_first_by_blocks(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    stored, norm = blocks(128, 256), some_norm(256)
    multiply_blocks_in_float64(monkeypatch, stored)
    x, residual = torch.randn(rows, 256).bfloat16(), torch.randn(rows, 256).bfloat16()
    want = exact(norm.add(x, residual.clone()), stored, None)
    got = Linear(fp8_product(stored)).after_norm(x, residual, norm)
    assert error(got, want) <= (EXACT_INPUT if rows == 1 else ROUNDED_INPUT)


@pytest.mark.parametrize("rows", [2, 40])
def test_a_feed_forward_of_float8(rows: int) -> None:
    torch.manual_seed(1)
    gate_up, down = quantise_channels(torch.randn(192, 32)), quantise_channels(torch.randn(32, 96))
    x, residual, norm = torch.randn(rows, 32).bfloat16(), torch.randn(rows, 32).bfloat16(), some_norm(32)
    mlp = GatedMLP(Linear(fp8_product(gate_up)), Linear(fp8_product(down)), ReferenceKernels())
    gate, up = exact(norm.add(x, residual.clone()), gate_up, None).chunk(2, 1)
    want = exact(torch.nn.functional.silu(gate) * up, down, None)
    assert error(numbers_of(mlp(x, residual, norm)), want) <= (
        2 * EXACT_INPUT if rows == 2 else 2 * ROUNDED_INPUT
    )


@pytest.mark.parametrize(
    ("capability", "dtype", "float8", "layout"),
    [
        ((9, 0), torch.bfloat16, True, Fp8Product),
        ((9, 0), torch.bfloat16, False, Bf16Product),
        ((8, 0), torch.bfloat16, True, Bf16Product),
        ((9, 0), torch.float32, True, DenseProduct),
    ],
)
def test_the_layout_that_a_gpu_can_run(
    monkeypatch: pytest.MonkeyPatch, capability: Any, dtype: torch.dtype, float8: bool, layout: type
) -> None:
    monkeypatch.setattr(gpu_products, "kind_of", lambda _: GpuKind(capability, 132))
    monkeypatch.setattr(Fp8Weight, "to", lambda self, _: self)
    stored = channels(32, 96)
    matrix = Matrix(
        32, 96, dtype, torch.device("cuda"), lambda: stored.dequantise(dtype), stored if float8 else None
    )
    product = matrix_product(matrix)
    assert type(product) is layout
    x = torch.randn(3, 96).to(dtype)
    assert error(product(x).bfloat16(), exact(x, stored, None)) <= EXACT_INPUT


def test_a_rounded_input_needs_a_scale_for_each_channel() -> None:
    stored, x = blocks(128, 128), torch.randn(1, 128).bfloat16()
    values, scales = quantise_rows_reference(x)
    with pytest.raises(ValueError, match="a scale for each channel"):
        triton_linear.launch_rounded(
            values, scales, stored.values, stored.scale, torch.bfloat16, GemmChoice(Method.DOT, 64, 64, 1, 4)
        )


def test_tiles_that_cross_blocks_are_refused() -> None:
    stored, x = blocks(256, 256), torch.randn(1, 256).bfloat16()
    for choice in (GemmChoice(Method.GEMV, 4, 128, 1, 4), GemmChoice(Method.DOT, 64, 256, 1, 4)):
        with pytest.raises(ValueError, match="tiles that divide 128"):
            triton_linear.launch(x, stored.values, stored.scale, choice)


@pytest.mark.parametrize("k", [128, 640])
@pytest.mark.parametrize("rows", [41, 44])
def test_many_rows_with_a_scale_for_each_block(monkeypatch: pytest.MonkeyPatch, rows: int, k: int) -> None:
    """torch multiplies so on Hopper alone. Its stand-in reads the operands as torch documents them: scales of activations
    [M, K / 128] and of the weight [K / 128 rounded up to 4, N / 128], both with the first stride 1."""
    stored = blocks(128, k)
    x, bias = torch.randn(rows, k).bfloat16(), torch.randn(128).bfloat16()

    def scaled_mm(
        a: Tensor, b: Tensor, sa: Tensor, _ra: Any, sb: Tensor, _rb: Any, output_dtype: torch.dtype
    ) -> Tensor:
        assert a.shape[0] % 4 == 0
        assert sa.shape == (a.shape[0], k // 128)
        assert sb.shape == (-(-k // 512) * 4, b.shape[1] // 128)
        assert sa.stride() == (1, a.shape[0])
        assert sb.stride() == (1, sb.shape[0])
        wide_a = a.double() * sa.double().repeat_interleave(128, 1)
        spread = sb.double()[: k // 128].repeat_interleave(128, 0).repeat_interleave(128, 1)
        return (wide_a @ (b.double() * spread)).to(output_dtype)

    monkeypatch.setattr(gpu_products.functional, "scaled_mm", scaled_mm)
    product = fp8_product(stored, bias)
    assert isinstance(product, BlockFp8Product)
    got = product(x)
    assert error(got, exact(x, stored, bias)) <= ROUNDED_INPUT
    values, scales = quantise_groups_reference(x)
    rounded = (values.double() * scales.double().repeat_interleave(128, 1))[:rows]
    assert error(got, exact(rounded, stored, bias)) <= EXACT_INPUT
