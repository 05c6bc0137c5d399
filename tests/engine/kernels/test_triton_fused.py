"""The fused decode products in Triton's interpreter against float64: norm before, SiLU, residual and bias after."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from shoal_engine.kernels.fused_tiles import (
    MAX_ROWS,
    ROW_BLOCKS,
    GemvTile,
    NarrowTile,
    ProductTile,
    gemv_tile,
    product_tile,
)
from shoal_engine.kernels.triton_fused_gemv import multiply_row
from shoal_engine.kernels.triton_fused_operands import FusedWeight, NormInput, PartialSums, Stream
from shoal_engine.kernels.triton_fused_product import multiply_rows, square_tiles
from shoal_engine.kernels.triton_fused_rows import embed, normalise
from shoal_engine.quantization.fp8 import quantise_channels

EPS = 1e-5
GEMVS = [GemvTile(1, 1, 1), GemvTile(2, 2, 2), GemvTile(4, 1, 4, False)]
PRODUCTS = [
    ProductTile(16, 32, early=True),
    ProductTile(16, 32, parts=2),
    ProductTile(32, 64, head=2),
    ProductTile(16, 64, fold=4),
    ProductTile(16, 32, parts=2, fold=2, head=2),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def nan(*shape: int) -> Tensor:
    return torch.full(shape, float("nan"))


def sums() -> PartialSums:
    return PartialSums(nan(2**16), torch.zeros(64, dtype=torch.int32))


def assert_near(got: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    error = float((got.double() - want).norm() / want.norm())
    assert error <= tolerance, f"relative error {error}"


def product(x: Tensor, weight: FusedWeight, gated: bool) -> Tensor:
    """The twin of what follows the norm."""
    matrix = weight.values.double() * (1.0 if weight.scale is None else weight.scale.double()[:, None])
    y = x.double() @ matrix.T + (0.0 if weight.bias is None else weight.bias.double())
    if gated:
        gate, up = y.chunk(2, -1)
        return functional.silu(gate) * up
    return y


def normed(x: Tensor, gain: Tensor) -> Tensor:
    x = x.double()
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + EPS) * gain.double()


def weight_of(n: int, k: int, float8: bool = False, bias: bool = False) -> FusedWeight:
    values, scale = torch.randn(n, k), None
    if float8:
        rounded = quantise_channels(values * torch.logspace(-2, 2, n)[:, None])
        values, scale = rounded.values, rounded.scale
    return FusedWeight(values, scale, torch.randn(n) if bias else None)


@pytest.mark.parametrize("tile", GEMVS, ids=str)
@pytest.mark.parametrize(("n", "k"), [(8, 256), (13, 300)])
def test_one_row_normed_and_with_bias(tile: GemvTile, n: int, k: int) -> None:
    x, gain, weight, out = torch.randn(1, k), torch.randn(k), weight_of(n, k, bias=True), nan(1, n)
    multiply_row(x, weight, out, tile, False, NormInput(gain, EPS))
    assert_near(out, product(normed(x, gain), weight, gated=False))


@pytest.mark.parametrize("tile", GEMVS, ids=str)
@pytest.mark.parametrize("float8", [False, True])
def test_one_row_gated(tile: GemvTile, float8: bool) -> None:
    x, gain, weight, out = torch.randn(1, 300), torch.randn(300), weight_of(22, 300, float8), nan(1, 11)
    multiply_row(x, weight, out, tile, False, NormInput(gain, EPS), gated=True)
    assert_near(out, product(normed(x, gain), weight, gated=True))


@pytest.mark.parametrize("tile", GEMVS, ids=str)
def test_one_row_added_to_the_residual(tile: GemvTile) -> None:
    x, weight, out = torch.randn(1, 520), weight_of(9, 520), torch.randn(1, 9)
    want = out.double() + product(x, weight, gated=False)
    multiply_row(x, weight, out, tile, False, adds=True)
    assert_near(out, want)


@pytest.mark.parametrize("tile", PRODUCTS, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(2, 32, 128), (9, 21, 70)])
@pytest.mark.parametrize("float8", [False, True])
def test_rows_normed_and_with_bias(tile: ProductTile, m: int, n: int, k: int, float8: bool) -> None:
    x, gain, weight, out = torch.randn(m, k), torch.randn(k), weight_of(n, k, float8, bias=True), nan(m, n)
    squares = x.square().reshape(m, -1, k // 2).sum(-1)  # two partial sums a row
    stream = Stream(x, x * gain, squares.flatten())
    multiply_rows(stream.scaled, weight, out, tile, sums(), False, stream, 2, EPS)
    assert_near(out, product(normed(x, gain), weight, gated=False))


@pytest.mark.parametrize("tile", PRODUCTS, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(3, 32, 128), (5, 19, 70)])
def test_rows_gated(tile: ProductTile, m: int, n: int, k: int) -> None:
    x, gain, weight, out = torch.randn(m, k), torch.randn(k), weight_of(2 * n, k), nan(m, n)
    stream = Stream(x, x * gain, x.square().sum(-1))
    multiply_rows(stream.scaled, weight, out, tile, sums(), False, stream, 1, EPS, gated=True)
    assert_near(out, product(normed(x, gain), weight, gated=True))


@pytest.mark.parametrize("tile", PRODUCTS, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(4, 48, 128), (6, 37, 70)])
def test_rows_added_to_the_residual_are_ready_for_the_next_norm(
    tile: ProductTile, m: int, n: int, k: int
) -> None:
    x, weight, gain, before = torch.randn(m, k), weight_of(n, k), torch.randn(n), torch.randn(m, n)
    tiles, shared = square_tiles(n, tile), sums()
    stream = Stream(before.clone(), nan(m, n), nan(m * tiles))
    for _ in range(2):  # the second finds the counters back at zero
        stream.hidden.copy_(before)
        multiply_rows(x, weight, stream.scaled, tile, shared, False, adds_to=stream, gain=gain)
    want = before.double() + product(x, weight, gated=False)
    assert_near(stream.hidden, want)
    assert_near(stream.scaled, want * gain.double())
    assert_near(stream.squares.view(m, tiles).sum(1), want.square().sum(1))
    assert not shared.arrivals.any()


def test_a_row_does_not_depend_on_the_others() -> None:
    x, weight, tile = torch.randn(8, 96), weight_of(24, 96), ProductTile(16, 32, parts=2)
    out, again = nan(8, 24), nan(8, 24)
    multiply_rows(x, weight, out, tile, sums(), False)
    x[1:] = float("nan")
    multiply_rows(x, weight, again, tile, sums(), False)
    assert torch.equal(again[0], out[0])


def test_parts_that_do_not_fit_the_workspace_are_not_cut() -> None:
    x, weight, out = torch.randn(3, 128), weight_of(32, 128), nan(3, 32)
    multiply_rows(
        x, weight, out, ProductTile(16, 32, parts=4), PartialSums(nan(8), torch.zeros(1).int()), False
    )
    assert_near(out, product(x, weight, gated=False))


@pytest.mark.parametrize("width", [64, 100])
def test_both_ends_of_a_step(width: int) -> None:
    table, gain, ids = torch.randn(9, width), torch.randn(width), torch.tensor([4, 0, 8])
    stream = Stream(nan(3, width), nan(3, width), nan(3 * 5))
    embed(ids, table, gain, stream, 5, False)
    rows = table[ids].double()
    assert torch.equal(stream.hidden, table[ids])
    assert_near(stream.scaled, rows * gain.double())
    assert_near(stream.squares.view(3, 5).sum(1), rows.square().sum(1))
    out = nan(3, width)
    normalise(stream.hidden, NormInput(gain, EPS), out, False)
    assert_near(out, normed(rows, gain))


def test_float16_begins_with_a_sixteenth() -> None:
    table, gain, ids = torch.randn(9, 64) * 1e4, torch.rand(64) + 0.5, torch.tensor([4, 0])
    table[4, 3] = 3e6
    stream = Stream(nan(2, 64), nan(2, 64).half(), nan(2))
    embed(ids, table, gain, stream, 1, False)
    want = (table[ids] * gain).clamp(max=16 * torch.finfo(torch.float16).max)
    assert_near(stream.scaled.float() * 16, want.double(), 1e-3)


def test_every_shape_has_a_tile_that_a_kernel_can_run() -> None:
    for n, k in [(6144, 4096), (1024, 2048), (4096, 14336), (100, 72), (1, 1)]:
        assert gemv_tile(n, k).warps * gemv_tile(n, k).row_steps >= 1
        for rows in range(2, MAX_ROWS + 1):
            tile = product_tile(n, k, rows, False)
            assert isinstance(tile, ProductTile)
            assert tile.parts >= 1
            assert tile.block_k % (16 * tile.fold) == 0
            assert tile.head in (1, 2)
            for float8 in (False, True):
                narrow = product_tile(n, k, rows, True, float8)
                assert narrow == tile or (isinstance(narrow, NarrowTile) and rows <= 32 and k % 512 == 0)
    assert ROW_BLOCKS[-1] == MAX_ROWS
