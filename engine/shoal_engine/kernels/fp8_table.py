"""How a float8 weight of one shape is multiplied at one number of rows. Data and its lookup; launches nothing.

The part between the marks is written by `benchmarks/h200/fp8.py --write` from times on the card that it names; rounding
the activations is counted in them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import Enum

from shoal_engine.kernels.gemm_table import MAX_ROWS, GemmChoice, Method


class Fp8Way(Enum):
    """WIDE: our kernel widens the weight in registers, activations keep their bits. The others round these to float8.

    TILE: our kernel. TENSOR: torch with one scale for each operand, left at 1, those of rows and channels applied to the
    result. ROWS: torch with them. BLOCKS: torch, the weight scaled by 128 x 128, activations by 1 x 128.
    """

    WIDE = "wide"
    TILE = "tile"
    TENSOR = "tensor"
    ROWS = "rows"
    BLOCKS = "blocks"


@dataclass(frozen=True, slots=True)
class Fp8Choice:
    """tile: of the ways that are our kernels."""

    way: Fp8Way
    tile: GemmChoice | None = None


ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SMALL = 2**23
_GEMV, _DOT = Method.GEMV, Method.DOT
_WIDE, _TILE, _TENSOR, _ROWS, _BLOCKS = Fp8Way

# (N, K) -> what to use up to ROW_BUCKETS[i] rows: the way, and for our kernels method, block_n, block_k, split_k, warps,
# stages.
_Row = tuple[Fp8Way] | tuple[Fp8Way, Method, int, int, int, int, int]
# --- tuned ---
# Measured on one NVIDIA H200, torch 2.11.0+cu130.
_CHANNELS: dict[tuple[int, int], tuple[_Row, ...]] = {
    (6144, 4096): (
        (_WIDE, _GEMV, 16, 512, 1, 8, 1),
        (_TILE, _DOT, 64, 128, 4, 4, 4),
        (_TILE, _DOT, 64, 256, 4, 4, 4),
        (_TILE, _DOT, 64, 256, 1, 4, 4),
        (_TILE, _DOT, 64, 256, 1, 4, 4),
        (_TILE, _DOT, 64, 256, 1, 4, 4),
        (_TILE, _DOT, 64, 256, 1, 4, 4),
        (_TENSOR,),
        (_ROWS,),
        (_TENSOR,),
        (_ROWS,),
    ),
    (4096, 4096): (
        (_WIDE, _GEMV, 2, 1024, 1, 2, 5),
        (_TILE, _DOT, 64, 128, 4, 4, 6),
        (_TILE, _DOT, 64, 256, 4, 4, 3),
        (_TILE, _DOT, 64, 128, 4, 4, 6),
        (_TILE, _DOT, 64, 256, 2, 4, 4),
        (_TILE, _DOT, 64, 256, 1, 4, 4),
        (_TILE, _DOT, 64, 256, 1, 4, 4),
        (_TENSOR,),
        (_TENSOR,),
        (_ROWS,),
        (_ROWS,),
    ),
    (28672, 4096): (
        (_WIDE, _GEMV, 4, 512, 1, 2, 5),
        (_TILE, _DOT, 64, 256, 1, 4, 3),
        (_TILE, _DOT, 64, 256, 1, 4, 3),
        (_TILE, _DOT, 64, 256, 1, 4, 3),
        (_TILE, _DOT, 64, 128, 1, 4, 4),
        (_TILE, _DOT, 64, 128, 1, 4, 4),
        (_TILE, _DOT, 128, 128, 1, 4, 4),
        (_ROWS,),
        (_ROWS,),
        (_ROWS,),
        (_ROWS,),
    ),
    (4096, 14336): (
        (_WIDE, _GEMV, 8, 1024, 1, 4, 5),
        (_TILE, _DOT, 64, 256, 4, 4, 4),
        (_TILE, _DOT, 64, 256, 4, 4, 3),
        (_TILE, _DOT, 64, 256, 4, 4, 4),
        (_TILE, _DOT, 64, 256, 2, 4, 4),
        (_TILE, _DOT, 64, 256, 2, 4, 4),
        (_TENSOR,),
        (_TENSOR,),
        (_TENSOR,),
        (_ROWS,),
        (_ROWS,),
    ),
    (4096, 1024): (
        (_WIDE, _GEMV, 8, 512, 1, 8, 1),
        (_WIDE, _DOT, 64, 128, 4, 4, 6),
        (_WIDE, _DOT, 64, 128, 2, 4, 4),
        (_WIDE, _DOT, 64, 128, 2, 4, 4),
        (_WIDE, _DOT, 64, 256, 1, 4, 3),
        (_TILE, _DOT, 64, 128, 1, 4, 6),
        (_TILE, _DOT, 64, 128, 1, 4, 6),
        (_TENSOR,),
        (_ROWS,),
        (_ROWS,),
        (_ROWS,),
    ),
    (1024, 2048): (
        (_WIDE, _GEMV, 2, 2048, 1, 4, 5),
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_WIDE, _DOT, 64, 256, 4, 4, 4),
        (_WIDE, _DOT, 64, 256, 4, 4, 3),
        (_WIDE, _DOT, 64, 256, 4, 4, 3),
        (_WIDE, _DOT, 64, 256, 4, 4, 3),
        (_TILE, _DOT, 64, 256, 1, 4, 4),
        (_TENSOR,),
        (_TENSOR,),
        (_TENSOR,),
        (_TENSOR,),
    ),
    (6144, 1024): (
        (_WIDE, _GEMV, 16, 512, 1, 8, 1),
        (_WIDE, _DOT, 64, 128, 1, 4, 4),
        (_WIDE, _DOT, 64, 128, 1, 4, 4),
        (_WIDE, _DOT, 64, 128, 1, 4, 4),
        (_WIDE, _DOT, 64, 256, 1, 4, 3),
        (_TILE, _DOT, 64, 128, 1, 4, 6),
        (_TILE, _DOT, 64, 128, 1, 4, 6),
        (_ROWS,),
        (_ROWS,),
        (_ROWS,),
        (_ROWS,),
    ),
    (1024, 3072): (
        (_WIDE, _GEMV, 2, 2048, 1, 4, 3),
        (_WIDE, _DOT, 64, 256, 4, 4, 3),
        (_WIDE, _DOT, 64, 256, 4, 4, 3),
        (_WIDE, _DOT, 64, 256, 4, 4, 3),
        (_WIDE, _DOT, 64, 256, 4, 4, 3),
        (_WIDE, _DOT, 64, 256, 4, 4, 3),
        (_TILE, _DOT, 64, 256, 1, 4, 4),
        (_TENSOR,),
        (_TENSOR,),
        (_TENSOR,),
        (_TENSOR,),
    ),
}
_IN_BLOCKS: dict[tuple[int, int], tuple[_Row, ...]] = {
    (6144, 4096): (
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
    ),
    (4096, 4096): (
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
    ),
    (28672, 4096): (
        (_WIDE, _DOT, 64, 128, 1, 4, 4),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
        (_WIDE, _DOT, 128, 128, 1, 4, 3),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
    ),
    (4096, 14336): (
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
    ),
    (4096, 1024): (
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_WIDE, _DOT, 64, 128, 1, 4, 4),
        (_WIDE, _DOT, 64, 128, 1, 4, 4),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
    ),
    (1024, 2048): (
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_WIDE, _DOT, 64, 128, 4, 4, 6),
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_WIDE, _DOT, 64, 128, 4, 4, 6),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
    ),
    (6144, 1024): (
        (_WIDE, _DOT, 64, 128, 4, 4, 6),
        (_WIDE, _DOT, 64, 128, 4, 4, 6),
        (_WIDE, _DOT, 64, 128, 1, 4, 4),
        (_WIDE, _DOT, 64, 128, 1, 4, 4),
        (_WIDE, _DOT, 64, 128, 1, 4, 4),
        (_WIDE, _DOT, 64, 128, 1, 4, 4),
        (_WIDE, _DOT, 64, 128, 1, 4, 3),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
    ),
    (1024, 3072): (
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_WIDE, _DOT, 64, 128, 4, 4, 6),
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_WIDE, _DOT, 64, 128, 4, 4, 3),
        (_WIDE, _DOT, 64, 128, 4, 4, 4),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
        (_BLOCKS,),
    ),
}
# --- end ---


@functools.cache
def choose_fp8(rows: int, out_features: int, in_features: int, in_blocks: bool) -> Fp8Choice:
    """The tuned choice for weight [out, in] and x [rows, in], or a rule for shapes that nobody has timed."""
    bucket = next((index for index, most in enumerate(ROW_BUCKETS) if rows <= most), None)
    if bucket is None:
        return Fp8Choice(Fp8Way.BLOCKS if in_blocks else Fp8Way.ROWS)
    tuned = (_IN_BLOCKS if in_blocks else _CHANNELS).get((out_features, in_features), ())
    if bucket < len(tuned):
        row = tuned[bucket]
        return Fp8Choice(row[0]) if len(row) == 1 else Fp8Choice(row[0], GemmChoice(*row[1:]))
    return _by_rule(rows, out_features, in_features, in_blocks)


def wide_tile(rows: int, out_features: int, in_features: int, in_blocks: bool) -> GemmChoice:
    """A kernel for few rows and any shape, with the weight widened or, above one row, with the input rounded."""
    if rows == 1 and not in_blocks:
        return GemmChoice(_GEMV, 4, 512, 1, 2, 5)
    tiles = -(-out_features // 64)
    split = 1
    # Programs for every multiprocessor (132) twice, each with at least four tiles along K.
    while tiles * split < 264 and split < 8 and in_features // (128 * split) >= 8:
        split *= 2
    return GemmChoice(_DOT, 64, 128, split, 4, 4)


def _by_rule(rows: int, out_features: int, in_features: int, in_blocks: bool) -> Fp8Choice:
    tile = wide_tile(rows, out_features, in_features, in_blocks)
    if rows <= 32 if in_blocks else rows == 1:
        return Fp8Choice(Fp8Way.WIDE, tile)
    if in_blocks:
        return Fp8Choice(Fp8Way.BLOCKS)
    if rows > MAX_ROWS:
        return Fp8Choice(Fp8Way.TENSOR if rows <= 256 else Fp8Way.ROWS)
    # What rounding the input costs, 2 us, reading a small weight does not give back.
    small = out_features * in_features < _SMALL and rows <= 16
    return Fp8Choice(Fp8Way.WIDE if small else Fp8Way.TILE, tile)
