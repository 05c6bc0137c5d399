"""Which kernel multiplies by a weight of one shape at one number of rows. Data and its lookup; launches nothing.

The part between the marks is written by `benchmarks/h200/linear.py --write` from times on the card that it names.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import Enum


class Method(Enum):
    """GEMV: one row, plain multiply-adds. DOT: tensor cores, the weight as their first operand. The rest is cuBLAS's."""

    GEMV = "gemv"
    DOT = "dot"
    CUBLAS = "cublas"
    CUBLASLT = "cublaslt"


@dataclass(frozen=True, slots=True)
class GemmChoice:
    """block_n weight rows and block_k of their elements per tile; split_k programs share a row; stages are of DOT only."""

    method: Method
    block_n: int = 0
    block_k: int = 0
    split_k: int = 1
    warps: int = 4
    stages: int = 1


ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MAX_ROWS = 64  # above it a DOT tile would no longer hold all rows: cuBLAS
_GEMV, _DOT, _CUBLAS, _CUBLASLT = Method.GEMV, Method.DOT, Method.CUBLAS, Method.CUBLASLT

# (N, K) -> what to use up to ROW_BUCKETS[i] rows: method, block_n, block_k, split_k, warps, stages.
_Row = tuple[Method, int, int, int, int, int]
# --- tuned ---
# Measured on one NVIDIA H100 80GB HBM3, torch 2.11.0+cu130.
_TABLE: dict[tuple[int, int], tuple[_Row, ...]] = {
    (6144, 4096): (
        (_GEMV, 4, 2048, 1, 8, 3),
        (_DOT, 64, 256, 1, 4, 3),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_DOT, 64, 128, 1, 4, 6),
        (_DOT, 64, 128, 1, 4, 6),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
    ),
    (4096, 4096): (
        (_GEMV, 2, 2048, 1, 4, 3),
        (_DOT, 64, 128, 2, 4, 4),
        (_DOT, 64, 128, 1, 4, 6),
        (_DOT, 64, 128, 1, 4, 6),
        (_DOT, 64, 128, 1, 4, 6),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
    ),
    (28672, 4096): (
        (_GEMV, 4, 4096, 1, 8, 3),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_DOT, 64, 128, 1, 4, 4),
        (_DOT, 128, 128, 1, 4, 3),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
    ),
    (4096, 14336): (
        (_GEMV, 4, 2048, 1, 8, 3),
        (_DOT, 64, 128, 4, 4, 3),
        (_DOT, 64, 128, 4, 4, 3),
        (_DOT, 64, 128, 4, 4, 3),
        (_DOT, 64, 128, 2, 4, 6),
        (_DOT, 64, 128, 2, 4, 6),
        (_CUBLASLT, 0, 0, 1, 4, 1),
        (_CUBLASLT, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
    ),
    (128256, 4096): (
        (_GEMV, 4, 4096, 1, 8, 3),
        (_DOT, 64, 256, 1, 4, 3),
        (_DOT, 64, 256, 1, 4, 3),
        (_DOT, 64, 128, 1, 4, 4),
        (_DOT, 64, 128, 1, 4, 6),
        (_DOT, 64, 128, 1, 4, 6),
        (_DOT, 128, 128, 1, 4, 3),
        (_CUBLASLT, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
    ),
    (4096, 1024): (
        (_GEMV, 2, 1024, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_DOT, 64, 128, 1, 4, 6),
        (_DOT, 64, 128, 1, 4, 6),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
    ),
    (1024, 2048): (
        (_GEMV, 2, 1024, 1, 4, 3),
        (_DOT, 64, 64, 4, 4, 6),
        (_DOT, 64, 64, 8, 4, 6),
        (_DOT, 64, 64, 4, 4, 6),
        (_DOT, 64, 128, 4, 4, 4),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
    ),
    (6144, 1024): (
        (_GEMV, 2, 1024, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_DOT, 64, 128, 1, 4, 6),
        (_DOT, 64, 128, 1, 4, 4),
        (_DOT, 64, 128, 1, 4, 4),
        (_DOT, 64, 128, 1, 4, 4),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
    ),
    (1024, 3072): (
        (_GEMV, 2, 1024, 1, 4, 1),
        (_DOT, 64, 64, 8, 4, 6),
        (_DOT, 64, 64, 8, 4, 6),
        (_DOT, 64, 64, 8, 4, 6),
        (_DOT, 64, 128, 4, 4, 6),
        (_DOT, 64, 128, 4, 4, 6),
        (_DOT, 64, 128, 4, 4, 4),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLASLT, 0, 0, 1, 4, 1),
    ),
    (151936, 1024): (
        (_GEMV, 4, 1024, 1, 4, 1),
        (_DOT, 64, 128, 1, 4, 6),
        (_DOT, 64, 128, 1, 4, 6),
        (_DOT, 64, 128, 1, 4, 6),
        (_DOT, 64, 128, 1, 4, 4),
        (_DOT, 64, 128, 1, 4, 6),
        (_DOT, 64, 128, 1, 4, 6),
        (_CUBLAS, 0, 0, 1, 4, 1),
        (_CUBLAS, 0, 0, 1, 4, 1),
    ),
}
# --- end ---


@functools.cache
def choose(rows: int, out_features: int, in_features: int) -> GemmChoice:
    """The tuned choice for weight [out, in] and x [rows, in], or a rule for shapes that nobody has timed."""
    bucket = next((index for index, most in enumerate(ROW_BUCKETS) if rows <= most), None)
    if bucket is None:
        return GemmChoice(Method.CUBLAS)
    tuned = _TABLE.get((out_features, in_features), ())
    if bucket < len(tuned):
        return GemmChoice(*tuned[bucket])
    return _by_rule(rows, out_features, in_features)


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
