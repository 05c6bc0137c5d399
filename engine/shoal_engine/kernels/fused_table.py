"""Measured tiles of the fused decode step: data that `benchmarks/h200/fused_decode.py --write` writes.

(N, K, 1): GemvTile; (N, K, row block): ProductTile; (kv heads, head size, -row block): AttentionTile, fields in order.
"""

from __future__ import annotations

TABLE: dict[tuple[int, int, int], tuple[int | bool, ...]] = {}
