"""How a float8 weight of one shape is multiplied at one number of rows. Data and its lookup; launches nothing.

The part between the marks is written by `benchmarks/h200/fp8.py --write` from times on the card that it names; rounding
the activations is counted in them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import Enum

from shoal_engine.kernels.gemm_table import GemmChoice, Method


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
_GEMV, _DOT = Method.GEMV, Method.DOT
_WIDE, _TILE, _TENSOR, _ROWS, _BLOCKS = Fp8Way

# (N, K) -> what to use up to ROW_BUCKETS[i] rows: the way, and for our kernels method, block_n, block_k, split_k, warps,
# stages.
_Row = tuple[Fp8Way] | tuple[Fp8Way, Method, int, int, int, int, int]
# --- tuned ---
_CHANNELS: dict[tuple[int, int], tuple[_Row, ...]] = {}
_IN_BLOCKS: dict[tuple[int, int], tuple[_Row, ...]] = {}
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
    """The kernel that widens the weight of any shape, for few rows."""
    if rows == 1 and not in_blocks:
        wide = in_features >= 4096
        return GemmChoice(_GEMV, 4 if out_features >= 2048 else 2, 2048 if wide else 1024, 1, 4)
    tiles = -(-out_features // 64)
    split = 1
    # Programs for every multiprocessor (132) twice, each with at least four tiles along K.
    while tiles * split < 264 and split < 8 and in_features // (128 * split) >= 8:
        split *= 2
    return GemmChoice(_DOT, 64, 128, split, 4, 4)


def _by_rule(rows: int, out_features: int, in_features: int, in_blocks: bool) -> Fp8Choice:
    if rows <= 8 or (in_blocks and rows <= 32):
        return Fp8Choice(Fp8Way.WIDE, wide_tile(rows, out_features, in_features, in_blocks))
    if in_blocks:
        return Fp8Choice(Fp8Way.BLOCKS)
    return Fp8Choice(Fp8Way.TENSOR if rows <= 256 else Fp8Way.ROWS)
