"""y = x W^T + b on a GPU in which a row's result has the same bits alone, among any others and at any place.

One program owns a tile of the result and sums along K from the first number to the last: nothing is split, and what
shares a tile with a row only stands beside it. All tiles in use are bitwise equal for a row, which
benchmarks/h200/deterministic.py proves on the card, so the number of rows may choose among them. Slower than the table
of `gemm_table`, which may split K and leave rows to cuBLAS.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal_engine.kernels.triton_jit import jit_once

MULTIPROCESSORS = 132  # of an H200
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_WIDEN = tl.constexpr(
    _INTERPRETED
)  # the interpreter cannot multiply bfloat16; products of it are exact in float32


@dataclass(frozen=True, slots=True)
class InvariantTile:
    """block_m rows of x by block_n rows of the weight, block_k numbers of each at a time.

    us: of one tile with K = 4096, when every multiprocessor of an H200 has one.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    us: float = 0.0


# The weight is the first operand of the tensor cores, whose 64 rows a batch of few requests could not fill.
TILES: tuple[InvariantTile, ...] = (
    InvariantTile(16, 64, 128, 4, 6, 11.0),
    InvariantTile(32, 64, 128, 4, 5, 11.5),
    InvariantTile(64, 64, 128, 4, 4, 16.0),
    InvariantTile(128, 64, 64, 4, 4, 25.0),
    InvariantTile(128, 128, 64, 8, 4, 31.0),
    InvariantTile(256, 128, 64, 8, 3, 49.0),
)
FLOAT32_TILE = InvariantTile(
    32, 32, 32, 4, 2
)  # no tensor core keeps float32 whole; one tile for any number of rows


@jit_once("m")
def _product_kernel(  # type: ignore[no-untyped-def]
    x, weight, bias, out, m, n, k,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    even: tl.constexpr, has_bias: tl.constexpr, band: tl.constexpr,
):  # fmt: skip
    """Program p: one tile. `band` tiles of weight rows stand together, so that they stay in the L2 cache for all rows."""
    tiles_m, tiles_n = tl.cdiv(m, block_m), tl.cdiv(n, block_n)
    first_n = tl.program_id(0) // (band * tiles_m) * band
    width = tl.minimum(tiles_n - first_n, band)
    within = tl.program_id(0) % (band * tiles_m)
    rows = (first_n + within % width) * block_n + tl.arange(0, block_n)
    cols = within // width * block_m + tl.arange(0, block_m)
    weight_rows = weight + rows.to(tl.int64)[:, None] * k
    x_rows = x + cols.to(tl.int64)[None, :] * k
    acc = tl.zeros((block_n, block_m), tl.float32)
    for start in range(0, k, block_k):
        inner = start + tl.arange(0, block_k)
        if even:
            w = tl.load(weight_rows + inner[None, :])
            v = tl.load(x_rows + inner[:, None], mask=(cols < m)[None, :], other=0.0)
        else:
            inside = inner < k
            w = tl.load(weight_rows + inner[None, :], mask=(rows < n)[:, None] & inside[None, :], other=0.0)
            v = tl.load(x_rows + inner[:, None], mask=(cols < m)[None, :] & inside[:, None], other=0.0)
        if _WIDEN:
            acc = tl.dot(w.to(tl.float32), v.to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(w, v, acc, input_precision="ieee")
    if has_bias:
        acc += tl.load(bias + rows, mask=rows < n, other=0.0).to(tl.float32)[:, None]
    place = cols.to(tl.int64)[None, :] * n + rows[:, None]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=(rows < n)[:, None] & (cols < m)[None, :])


def invariant_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, tile: InvariantTile | None = None
) -> Tensor:
    """x [M, K], weight [N, K] contiguous, bias [N], all of one dtype -> [M, N]. tile: for tuning and proofs."""
    if x.shape[1] != weight.shape[1] or not weight.is_contiguous() or x.dtype != weight.dtype:
        raise ValueError(
            f"expected a contiguous {x.dtype} weight [N, {x.shape[1]}], got {weight.dtype} {list(weight.shape)}"
        )
    x, (m, k), n = x.contiguous(), x.shape, weight.shape[0]
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if m == 0:
        return out
    tile = tile or tile_for(m, n, x.dtype)
    grid = triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n)
    _product_kernel[(grid,)](
        x, weight, x if bias is None else bias, out, m, n, k, tile.block_m, tile.block_n, tile.block_k,
        even=n % tile.block_n == 0 and k % tile.block_k == 0, has_bias=bias is not None, band=8,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def tile_for(m: int, n: int, dtype: torch.dtype) -> InvariantTile:
    """The tile that is done first, when each multiprocessor takes one at a time."""
    if dtype == torch.float32:
        return FLOAT32_TILE
    return min(TILES, key=lambda tile: tile.us * _rounds(m, n, tile))


def _rounds(m: int, n: int, tile: InvariantTile) -> int:
    tiles = -(-m // tile.block_m) * -(-n // tile.block_n)
    return -(-tiles // MULTIPROCESSORS)
