"""Which kernels may be fastest for a product; the rest was seen to lose (kernels.md 5.3). Data and rules, no timing."""

from __future__ import annotations

import itertools

from shoal_engine.kernels import gemm_table
from shoal_engine.kernels.gemm_table import GemmChoice, Method

SHAPES = {
    "8b": {"qkv": (6144, 4096), "o": (4096, 4096), "gate-up": (28672, 4096), "down": (4096, 14336),
           "head": (128256, 4096)},
    "0.6b": {"qkv": (4096, 1024), "o": (1024, 2048), "gate-up": (6144, 1024), "down": (1024, 3072),
             "head": (151936, 1024)},
}  # fmt: skip
PROCESSORS = 132
SKEWS = (0, 11)
PROPOSALS = 8  # cuBLASLt makes no more
LIBRARIES = [GemmChoice(Method.CUBLAS), GemmChoice(Method.CUBLASLT)]
GEMVS = [
    GemmChoice(Method.GEMV, n, k, 1, warps, stages)
    for (n, k, warps), stages in itertools.product(
        [(1, 1024, 2), (1, 2048, 4), (2, 1024, 2), (2, 1024, 4), (2, 2048, 4), (4, 1024, 2), (4, 1024, 4),
         (4, 2048, 8), (4, 4096, 8), (8, 1024, 8), (8, 512, 4)],
        (1, 3),
    )
]  # fmt: skip
DOTS = [
    GemmChoice(Method.DOT, n, k, split, 4, stages)
    for (n, k, stages), split in itertools.product(
        [(64, 128, 3), (64, 128, 4), (64, 128, 6), (64, 256, 3), (64, 64, 6), (128, 128, 3), (128, 64, 4)],
        (1, 2, 4, 8),
    )
]
# method, block_m, block_n, block_k, warps, stages: what fills shared memory or, for STREAM, half of it.
_STREAM, _WARPS = Method.STREAM, Method.WARPS
Tile = tuple[Method, int, int, int, int, int]
STREAM_TILES: list[Tile] = [
    (_STREAM, 64, 128, 64, 4, 4), (_STREAM, 128, 128, 64, 4, 3), (_STREAM, 128, 64, 128, 4, 4),
    (_WARPS, 64, 256, 64, 4, 5), (_WARPS, 64, 128, 64, 4, 8), (_WARPS, 64, 64, 64, 4, 12),
    (_WARPS, 128, 256, 64, 8, 4), (_WARPS, 128, 128, 64, 8, 6), (_WARPS, 128, 128, 64, 4, 6),
    (_WARPS, 128, 64, 64, 8, 8), (_WARPS, 192, 128, 64, 12, 5), (_WARPS, 256, 128, 64, 8, 4),
    (_WARPS, 256, 64, 64, 8, 5), (_WARPS, 64, 128, 128, 4, 4), (_WARPS, 128, 128, 128, 8, 3),
    (_WARPS, 128, 64, 128, 8, 4),
]  # fmt: skip


def candidates(rows: int, n: int, k: int) -> list[GemmChoice]:
    """For y [rows, n] of sums over k."""
    fits = [one for one in GEMVS if rows == 1 and one.block_k <= k]
    if 1 < rows <= gemm_table.MAX_ROWS:
        most = 8 if n <= 4096 else 2 if n <= 8192 else 1
        fits += [
            one
            for one in DOTS
            if one.split_k <= most
            and k // one.block_k >= 2 * one.split_k
            and (rows > 32 or one.block_n == 64)
        ]
    return fits + streams(rows, n, k, STREAM_TILES) + proposals(rows) + LIBRARIES


def proposals(rows: int) -> list[GemmChoice]:
    """What cuBLASLt would do for so many rows, and for others of the same order."""
    near = [other for other in gemm_table.ROW_BUCKETS if rows <= 2 * other and other <= 2 * rows]
    listed = near if rows >= 64 else [rows]
    return [
        GemmChoice(Method.PROPOSAL, split_k=place, block_m=other)
        for other in listed
        for place in range(PROPOSALS if rows > 1 else 0)
    ]


def streams(rows: int, n: int, k: int, tiles: list[Tile]) -> list[GemmChoice]:
    found = []
    for method, block_m, block_n, block_k, warps, stages in tiles:
        if rows < 17 or not _suits(rows, block_m):
            continue
        count, steps = -(-rows // block_m) * -(-n // block_n), k // block_k
        splits = [
            split
            for split in (2, 3, 4, 8, 16)
            if 64 <= count * split <= PROCESSORS and steps >= 3 * split and steps % split == 0
        ]
        splits += [1] if count >= 48 else []
        uneven = count % PROCESSORS != 0 and count < 2000
        splits += [0] if uneven and count * steps >= 4 * PROCESSORS else []
        found += [
            GemmChoice(method, block_n, block_k, split, warps, stages, block_m, skew)
            for split, skew in itertools.product(splits, SKEWS)
        ]
    return found


def _suits(rows: int, block_m: int) -> bool:
    """The last tile of rows is more than half full, but for the smallest tile."""
    if block_m == 64:
        return rows <= 64
    return rows > block_m // 2 and (rows % block_m == 0 or rows % block_m * 2 > block_m)
