"""The ways to multiply by a float8 weight that `fp8.py` compares: our kernels' tiles and torch's products. Times nothing."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal_engine.kernels import triton_linear
from shoal_engine.kernels.fp8_table import Fp8Choice, Fp8Way, choose_fp8
from shoal_engine.kernels.gemm_table import MAX_ROWS, GemmChoice, Method
from shoal_engine.kernels.triton_quantise import quantise_groups, quantise_rows
from shoal_engine.layers.gpu_products import BlockFp8Product, Fp8Product
from shoal_engine.quantization.fp8 import BLOCK, Fp8Weight, quantise_channels

GEMVS = [
    GemmChoice(Method.GEMV, n, k, 1, warps, stages)
    for n, k, warps, stages in itertools.product((2, 4, 8, 16), (512, 1024, 2048), (1, 2, 4, 8), (1, 3, 5))
    if 16 <= n * k // (32 * warps) <= 64
]
DOTS = [
    GemmChoice(Method.DOT, n, k, split, 4, stages)
    for (n, k, stages), split in itertools.product(
        [(64, 128, 3), (64, 128, 4), (64, 128, 6), (64, 256, 3), (64, 256, 4), (128, 128, 3), (128, 128, 4)],
        (1, 2, 4),
    )
]


@dataclass(frozen=True)
class Way:
    """One way to multiply: run(x, weight) of rows [M, K]; `rounded` is x as it is multiplied."""

    choice: Fp8Choice
    run: Callable[[Tensor, Fp8Weight], Tensor]
    rounded: Callable[[Tensor], Tensor]
    in_blocks: bool = False


def same(x: Tensor) -> Tensor:
    return x.double()


def by_row(x: Tensor) -> Tensor:
    values, scales = quantise_rows(x)
    return values.double() * scales.double()


def by_group(x: Tensor) -> Tensor:
    values, scales = quantise_groups(x)
    return (values.double() * scales.double().repeat_interleave(BLOCK, 1))[: x.shape[0]]


def wide_way(tile: GemmChoice, in_blocks: bool) -> Way:
    choice = Fp8Choice(Fp8Way.WIDE, tile)
    return Way(choice, lambda x, w: triton_linear.launch(x, w.values, w.scale, tile), same, in_blocks)


def rounding_way(choice: Fp8Choice) -> Way:
    def run(x: Tensor, weight: Fp8Weight) -> Tensor:
        product = product_of(weight)
        if isinstance(product, BlockFp8Product):
            return product.multiply_rounded(*quantise_groups(x), x.dtype)[: x.shape[0]]
        return product.multiply_rounded(*quantise_rows(x), x.dtype, choice)

    in_blocks = choice.way is Fp8Way.BLOCKS
    return Way(choice, run, by_group if in_blocks else by_row, in_blocks)


@functools.cache
def product_of(weight: Fp8Weight) -> Fp8Product | BlockFp8Product:
    """Kept, as a model keeps it."""
    return BlockFp8Product(weight) if weight.in_blocks else Fp8Product(weight)


def ways(rows: int, n: int, k: int, tune: bool) -> list[Way]:
    chosen = [choose_fp8(rows, n, k, False), choose_fp8(rows, n, k, True)]
    found = []
    if rows <= MAX_ROWS:
        wide = [one.tile for one in chosen if one.way is Fp8Way.WIDE]
        for in_blocks in (False, True):
            tiles = wide_tiles(rows, n, k, in_blocks) if tune else wide[:1]
            found += [wide_way(one, in_blocks) for one in tiles if one is not None]
    if rows >= 2:
        tiled = (
            [Fp8Choice(Fp8Way.TILE, one) for one in dots(n, k, False)]
            if tune and rows <= MAX_ROWS
            else chosen
        )
        libraries = (
            [Fp8Way.TENSOR, Fp8Way.ROWS, Fp8Way.BLOCKS] if rows <= 1024 else [Fp8Way.ROWS, Fp8Way.BLOCKS]
        )
        found += [rounding_way(one) for one in tiled if one.way is Fp8Way.TILE]
        found += [rounding_way(Fp8Choice(one)) for one in libraries]
    return found


def dots(n: int, k: int, in_blocks: bool) -> list[GemmChoice]:
    most = 4 if n <= 6144 else 1
    return [
        one
        for one in DOTS
        if one.split_k <= most
        and k // one.block_k >= 2 * one.split_k
        and not (in_blocks and one.block_k > BLOCK)
    ]


def wide_tiles(rows: int, n: int, k: int, in_blocks: bool) -> list[GemmChoice]:
    gemvs = [one for one in GEMVS if rows == 1 and one.block_k <= k and not in_blocks]
    return gemvs or dots(n, k, in_blocks)


def random_weight(n: int, k: int, in_blocks: bool) -> Fp8Weight:
    weight = torch.randn(n, k, device="cuda") * 0.02
    if not in_blocks:
        return quantise_channels(weight)
    peaks = weight.view(n // BLOCK, BLOCK, k // BLOCK, BLOCK).abs().amax((1, 3)) / 448
    wide = peaks.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return Fp8Weight((weight / wide).to(torch.float8_e4m3fn), peaks)
