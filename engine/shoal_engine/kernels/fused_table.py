"""Measured tiles of the fused decode step: data. `benchmarks/h200/fused_decode.py` and `narrow.py` write TABLE with --write.

(N, K, 1): GemvTile; (N, K, row block): NarrowTile, of up to five fields, or ProductTile; their fields in order.
"""

from __future__ import annotations

# Of float8 weights where narrow tiles run, NarrowTile alone; kept by hand. Measured on one NVIDIA H200, torch 2.11.0+cu130,
# by themselves as `narrow.py --float8` does, the best of them beside one another in steps of Llama-3.1-8B at context 577.
FLOAT8: dict[tuple[int, int, int], tuple[int | bool, ...]] = {
    (4096, 4096, 8): (16, 8, 2, True),
    (4096, 4096, 16): (32, 8, 2, True),
    (4096, 4096, 32): (32, 8, 1, True),
    (4096, 14336, 8): (16, 8, 2, True),
    (4096, 14336, 16): (32, 16, 1, True),
    (4096, 14336, 32): (32, 8, 1, True),
    (6144, 4096, 8): (16, 4, 4, True),
    (6144, 4096, 16): (32, 8, 1, True),
    (6144, 4096, 32): (16, 4, 1, True),
    (28672, 4096, 8): (16, 4, 4, True),
    (28672, 4096, 16): (32, 4, 1, True),
    (28672, 4096, 32): (128, 2, 1, True, 2),
}

# Measured on one NVIDIA H200, torch 2.11.0+cu130, context 577: products of 2 rows and more by benchmarks/h200/narrow.py,
# beside one another in a step; one row by fused_decode.py.
TABLE: dict[tuple[int, int, int], tuple[int | bool, ...]] = {
    (1024, 2048, 1): (1, 8, 4, True),
    (1024, 2048, 8): (16, 16, 2, True),
    (1024, 2048, 16): (16, 8, 4, True),
    (1024, 2048, 32): (16, 8, 4, False),
    (1024, 3072, 1): (1, 4, 4, True),
    (1024, 3072, 8): (16, 8, 6, True),
    (1024, 3072, 16): (16, 8, 3, True),
    (1024, 3072, 32): (16, 8, 3, False),
    (4096, 1024, 1): (2, 4, 8, True),
    (4096, 1024, 8): (16, 8, 2, True),
    (4096, 1024, 16): (64, 8, 2, True),
    (4096, 1024, 32): (16, 4, 2, True),
    (4096, 4096, 1): (1, 4, 4, True),
    (4096, 4096, 8): (16, 8, 2, True),
    (4096, 4096, 16): (64, 128, 4, 1, 4, 4, 1, False),
    (4096, 4096, 32): (64, 128, 2, 1, 4, 4, 1, False),
    (4096, 14336, 1): (1, 4, 8, True),
    (4096, 14336, 8): (32, 8, 2, True),
    (4096, 14336, 16): (64, 128, 4, 1, 4, 4, 1, False),
    (4096, 14336, 32): (64, 128, 4, 1, 4, 3, 1, False),
    (6144, 1024, 1): (1, 4, 2, True),
    (6144, 1024, 8): (64, 8, 2, True),
    (6144, 1024, 16): (64, 8, 2, True),
    (6144, 1024, 32): (32, 4, 2, True),
    (6144, 4096, 1): (1, 4, 4, True),
    (6144, 4096, 8): (32, 4, 2, True),
    (6144, 4096, 16): (64, 128, 2, 1, 4, 4, 1, False),
    (6144, 4096, 32): (64, 128, 2, 1, 4, 3, 1, False),
    (28672, 4096, 1): (1, 4, 2, True),
    (28672, 4096, 8): (16, 8, 2, True),
    (28672, 4096, 16): (64, 128, 1, 1, 4, 4, 1, False),
    (28672, 4096, 32): (64, 128, 1, 1, 4, 3, 1, False),
}
