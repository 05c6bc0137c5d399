"""Which kernel multiplies by a weight of one shape at one number of rows. Data and its lookup; launches nothing.

The part between the marks is written by `benchmarks/h200/linear.py --write` from times on the card that it names.
"""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass
from enum import Enum


class Method(Enum):
    """GEMV: one row, plain multiply-adds. DOT: tensor cores, the weight as their first operand. STREAM: `triton_stream_k`;
    WARPS: `gluon_stream_k`; both Hopper only. The rest is cuBLAS's; PROPOSAL: number split_k of its list for block_m rows.
    """

    GEMV = "gemv"
    DOT = "dot"
    STREAM = "stream"
    WARPS = "warps"
    CUBLAS = "cublas"
    CUBLASLT = "cublaslt"
    PROPOSAL = "proposal"

    @property
    def streams(self) -> bool:
        return self in (Method.STREAM, Method.WARPS)


@dataclass(frozen=True, slots=True)
class GemmChoice:
    """block_n weight rows and block_k of their elements per tile; split_k programs share a row, 0 leaves it to the card.

    stages and, for the rows of x in a tile, block_m are of the tensor cores' methods only. Tile i starts its sums at step
    i * skew of K, so that not all programs read the same columns, thus the same channels of memory, at once.
    """

    method: Method
    block_n: int = 0
    block_k: int = 0
    split_k: int = 1
    warps: int = 4
    stages: int = 1
    block_m: int = 0
    skew: int = 0


ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
MAX_ROWS = 64  # above it a DOT tile would no longer hold all rows
_GEMV, _DOT, _STREAM, _WARPS, _CUBLAS, _CUBLASLT, _PROPOSAL = Method  # the order of the class

# (N, K) -> what to use up to ROW_BUCKETS[i] rows: method, block_n, block_k, split_k, warps, stages, block_m, skew.
_Row = tuple[Method, int, int, int, int, int, int, int]
# --- tuned ---
# Measured on one NVIDIA H200, torch 2.11.0+cu130.
_TABLE: dict[tuple[int, int], tuple[_Row, ...]] = {
    (6144, 4096): (
        (_GEMV, 8, 512, 1, 4, 1, 0, 0),
        (_DOT, 64, 128, 2, 4, 4, 0, 0),
        (_DOT, 64, 128, 1, 4, 6, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_DOT, 64, 128, 1, 4, 6, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLASLT, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_PROPOSAL, 0, 0, 3, 4, 1, 192, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
    ),
    (4096, 4096): (
        (_GEMV, 4, 1024, 1, 2, 3, 0, 0),
        (_DOT, 64, 128, 4, 4, 3, 0, 0),
        (_DOT, 64, 64, 4, 4, 6, 0, 0),
        (_DOT, 64, 128, 4, 4, 4, 0, 0),
        (_DOT, 64, 128, 1, 4, 6, 0, 0),
        (_DOT, 64, 128, 1, 4, 6, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLASLT, 0, 0, 1, 4, 1, 0, 0),
        (_PROPOSAL, 0, 0, 1, 4, 1, 128, 0),
        (_PROPOSAL, 0, 0, 1, 4, 1, 192, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLASLT, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
    ),
    (28672, 4096): (
        (_GEMV, 4, 2048, 1, 8, 1, 0, 0),
        (_DOT, 64, 128, 1, 4, 3, 0, 0),
        (_DOT, 64, 128, 1, 4, 3, 0, 0),
        (_DOT, 64, 128, 1, 4, 3, 0, 0),
        (_DOT, 64, 128, 1, 4, 4, 0, 0),
        (_PROPOSAL, 0, 0, 2, 4, 1, 32, 0),
        (_PROPOSAL, 0, 0, 2, 4, 1, 64, 0),
        (_PROPOSAL, 0, 0, 1, 4, 1, 96, 0),
        (_PROPOSAL, 0, 0, 3, 4, 1, 128, 0),
        (_PROPOSAL, 0, 0, 1, 4, 1, 192, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
    ),
    (4096, 14336): (
        (_GEMV, 4, 1024, 1, 2, 1, 0, 0),
        (_DOT, 64, 128, 4, 4, 4, 0, 0),
        (_DOT, 64, 128, 2, 4, 6, 0, 0),
        (_DOT, 64, 128, 4, 4, 4, 0, 0),
        (_DOT, 64, 128, 4, 4, 3, 0, 0),
        (_CUBLASLT, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLASLT, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLASLT, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_PROPOSAL, 0, 0, 4, 4, 1, 192, 0),
        (_CUBLASLT, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
    ),
    (128256, 4096): (
        (_GEMV, 4, 2048, 1, 8, 1, 0, 0),
        (_DOT, 64, 256, 1, 4, 3, 0, 0),
        (_DOT, 64, 256, 1, 4, 3, 0, 0),
        (_DOT, 64, 256, 1, 4, 3, 0, 0),
        (_DOT, 64, 128, 1, 4, 6, 0, 0),
        (_PROPOSAL, 0, 0, 5, 4, 1, 32, 0),
        (_PROPOSAL, 0, 0, 3, 4, 1, 64, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_PROPOSAL, 0, 0, 6, 4, 1, 128, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_PROPOSAL, 0, 0, 2, 4, 1, 384, 0),
        (_PROPOSAL, 0, 0, 4, 4, 1, 512, 0),
    ),
    (4096, 1024): (
        (_GEMV, 8, 512, 1, 4, 3, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_DOT, 64, 128, 1, 4, 6, 0, 0),
        (_DOT, 64, 128, 1, 4, 6, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
    ),
    (1024, 2048): (
        (_GEMV, 4, 2048, 1, 8, 3, 0, 0),
        (_DOT, 64, 64, 8, 4, 6, 0, 0),
        (_DOT, 64, 64, 8, 4, 6, 0, 0),
        (_DOT, 64, 64, 8, 4, 6, 0, 0),
        (_DOT, 64, 128, 4, 4, 6, 0, 0),
        (_WARPS, 64, 64, 4, 4, 12, 64, 0),
        (_WARPS, 64, 64, 4, 4, 12, 64, 0),
        (_WARPS, 64, 64, 4, 8, 8, 128, 0),
        (_PROPOSAL, 0, 0, 2, 4, 1, 128, 0),
        (_PROPOSAL, 0, 0, 1, 4, 1, 192, 0),
        (_PROPOSAL, 0, 0, 4, 4, 1, 256, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
    ),
    (6144, 1024): (
        (_GEMV, 8, 512, 1, 4, 3, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_DOT, 64, 128, 1, 4, 6, 0, 0),
        (_DOT, 64, 128, 1, 4, 6, 0, 0),
        (_DOT, 64, 128, 1, 4, 6, 0, 0),
        (_DOT, 64, 128, 1, 4, 6, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_PROPOSAL, 0, 0, 0, 4, 1, 128, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
    ),
    (1024, 3072): (
        (_GEMV, 2, 1024, 1, 4, 1, 0, 0),
        (_DOT, 64, 64, 8, 4, 6, 0, 0),
        (_DOT, 64, 64, 8, 4, 6, 0, 0),
        (_DOT, 64, 64, 8, 4, 6, 0, 0),
        (_DOT, 64, 128, 4, 4, 6, 0, 0),
        (_WARPS, 64, 64, 4, 4, 12, 64, 0),
        (_WARPS, 64, 64, 4, 4, 12, 64, 11),
        (_WARPS, 64, 64, 4, 8, 8, 128, 0),
        (_WARPS, 64, 64, 4, 8, 8, 128, 0),
        (_PROPOSAL, 0, 0, 1, 4, 1, 192, 0),
        (_PROPOSAL, 0, 0, 1, 4, 1, 256, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_PROPOSAL, 0, 0, 0, 4, 1, 512, 0),
    ),
    (151936, 1024): (
        (_GEMV, 4, 1024, 1, 2, 3, 0, 0),
        (_DOT, 64, 128, 1, 4, 4, 0, 0),
        (_DOT, 64, 256, 1, 4, 3, 0, 0),
        (_DOT, 64, 256, 1, 4, 3, 0, 0),
        (_DOT, 64, 128, 1, 4, 3, 0, 0),
        (_DOT, 64, 128, 1, 4, 3, 0, 0),
        (_PROPOSAL, 0, 0, 6, 4, 1, 64, 0),
        (_PROPOSAL, 0, 0, 3, 4, 1, 96, 0),
        (_PROPOSAL, 0, 0, 5, 4, 1, 128, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_PROPOSAL, 0, 0, 3, 4, 1, 256, 0),
        (_CUBLAS, 0, 0, 1, 4, 1, 0, 0),
        (_PROPOSAL, 0, 0, 6, 4, 1, 512, 0),
    ),
}
# --- end ---


@functools.cache
def choose(rows: int, out_features: int, in_features: int) -> GemmChoice:
    """The tuned choice for weight [out, in] and x [rows, in], or a rule for shapes that nobody has timed."""
    bucket = bisect.bisect_left(ROW_BUCKETS, rows)
    tuned = _TABLE.get((out_features, in_features), ())
    return GemmChoice(*tuned[bucket]) if bucket < len(tuned) else _by_rule(rows, out_features, in_features)


def _by_rule(rows: int, out_features: int, in_features: int) -> GemmChoice:
    if rows == 1:
        wide = in_features >= 4096
        return GemmChoice(Method.GEMV, 4 if out_features >= 2048 else 2, 2048 if wide else 1024, 1, 4)
    if rows > 32:
        return GemmChoice(Method.CUBLAS)
    tiles = -(-out_features // 64)
    split = 1
    # Programs for every multiprocessor (132), each with at least two tiles along K.
    while tiles * split < 132 and split < 8 and in_features // (128 * split) >= 4:
        split *= 2
    return GemmChoice(Method.DOT, 64, 128, split, 4, 4)
