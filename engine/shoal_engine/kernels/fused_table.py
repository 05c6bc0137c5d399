"""Measured tiles of the fused decode step: data that `benchmarks/h200/fused_decode.py --write` writes.

(N, K, 1): GemvTile; (N, K, row block): ProductTile; (q size, kv size, -row block): AttentionTile; their fields in order.
"""

from __future__ import annotations

# Measured on one NVIDIA H200, torch 2.11.0+cu130, context 577; rows of 1 and products in one run, attention in a later one.
TABLE: dict[tuple[int, int, int], tuple[int | bool, ...]] = {
    (1024, 2048, 1): (1, 8, 4, True),
    (1024, 2048, 8): (64, 256, 8, 1, 4, 2, 1, False),
    (1024, 2048, 32): (64, 256, 4, 1, 4, 2, 2, True),
    (1024, 3072, 1): (1, 4, 4, True),
    (1024, 3072, 8): (64, 128, 8, 1, 4, 6, 1, False),
    (1024, 3072, 32): (64, 128, 4, 1, 4, 4, 1, False),
    (4096, 1024, 1): (2, 4, 8, True),
    (4096, 1024, 8): (64, 256, 4, 1, 4, 2, 1, False),
    (4096, 1024, 32): (64, 256, 4, 1, 4, 2, 1, False),
    (4096, 4096, 1): (1, 4, 4, True),
    (4096, 4096, 8): (64, 128, 8, 1, 4, 4, 1, False),
    (4096, 4096, 32): (64, 128, 2, 1, 4, 4, 1, False),
    (4096, 14336, 1): (1, 4, 8, True),
    (4096, 14336, 8): (64, 128, 4, 1, 4, 4, 1, False),
    (4096, 14336, 32): (64, 128, 4, 1, 4, 3, 1, False),
    (6144, 1024, 1): (1, 4, 2, True),
    (6144, 1024, 8): (16, 1024, 1, 4, 4, 2, 1, False),
    (6144, 1024, 32): (64, 256, 2, 1, 4, 2, 2, True),
    (6144, 4096, 1): (1, 4, 4, True),
    (6144, 4096, 8): (64, 128, 2, 1, 4, 4, 1, False),
    (6144, 4096, 32): (64, 128, 2, 1, 4, 3, 1, False),
    (28672, 4096, 1): (1, 4, 2, True),
    (28672, 4096, 8): (64, 128, 1, 1, 4, 4, 1, False),
    (28672, 4096, 32): (64, 128, 1, 1, 4, 3, 1, False),
    (2048, 1024, -32): (64, 4, 264, True, 5),
    (2048, 1024, -8): (64, 4, 264, False, 3),
    (2048, 1024, -1): (64, 4, 384, True, 1),
    (4096, 1024, -32): (64, 4, 264, True, 5),
    (4096, 1024, -8): (32, 2, 528, False, 1),
    (4096, 1024, -1): (64, 4, 256, True, 1),
}
