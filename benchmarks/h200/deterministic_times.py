"""Microseconds of the products and the attention that do not look at the batch, beside those that do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from deterministic_proofs import BLOCK_TOKENS, LAYOUTS, batch_of, operands
from graph_clock import copies_past_the_cache, us_per_call
from torch import Tensor
from torch.nn import functional

from shoal_engine.kernels.cuda import CudaKernels
from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadLayout
from shoal_engine.kernels.invariant import InvariantKernels
from shoal_engine.kernels.triton_invariant import TILES, InvariantTile, invariant_linear
from shoal_engine.kernels.triton_prefill import PrefillTiling

TIMED = [(4096, 1024), (1024, 3072), (6144, 4096), (28672, 4096), (4096, 14336)]
TILINGS = [
    PrefillTiling(64, 64, 4, 4),
    PrefillTiling(64, 128, 4, 3),
    PrefillTiling(64, 128, 8, 3),
    PrefillTiling(64, 128, 8, 2),
    PrefillTiling(128, 64, 8, 3),
    PrefillTiling(128, 128, 8, 3),
]


def product_times(counts: Sequence[int]) -> None:
    """us: the tile that is chosen, the best tile and its name, cuBLAS."""
    for n, k in TIMED:
        cells = []
        for m in counts:
            x, weight = operands(n, k, m)
            weights = copies_past_the_cache(weight)[:24]
            tiles = [tile for tile in TILES if tile.block_m < 4 * m or tile is TILES[0]]
            times = {tile: _tile_us(x, weights, tile) for tile in tiles}
            best = min(times, key=lambda tile: times[tile])
            ours = us_per_call(partial(invariant_linear, x), weights, 3)
            peer = us_per_call(partial(functional.linear, x), weights, 3)
            cells.append(f"{m}: {ours:.1f}/{times[best]:.1f}({best.block_m}x{best.block_n})/{peer:.1f}")
        print(f"us {n}x{k} chosen/best/cuBLAS  " + "  ".join(cells), flush=True)


def _tile_us(x: Tensor, weights: list[Tensor], tile: InvariantTile) -> float:
    return us_per_call(lambda w: invariant_linear(x, w, tile=tile), weights, 3)


def _attend(
    kernels: CudaKernels,
    q: Tensor,
    layout: HeadLayout,
    batch: AttentionBatch,
    scale: AttentionScale,
    cache: Tensor,
) -> Tensor:
    """As in the first layer of a step, which plans for the others."""
    return kernels.attend(q, layout, replace(batch), cache, scale)


def attention_times() -> None:
    """us of decodes and of a prompt, beside the kernels that look at the batch, and with other tilings."""
    for layout in LAYOUTS[:2]:
        for queries, context in [
            ([1], 1024),
            ([1] * 32, 1024),
            ([1] * 256, 1024),
            ([1], 8192),
            ([4096], 4096),
        ]:
            cells = []
            for kernels in (InvariantKernels(), CudaKernels(), *map(InvariantKernels, TILINGS)):
                try:
                    cells.append(f"{_attention_us(kernels, layout, queries, context):.1f}")
                except Exception as error:
                    cells.append(type(error).__name__)
            heads = f"{layout.num_heads}/{layout.num_kv_heads}"
            print(
                f"attention {heads}, {len(queries)} x {queries[0]} of {context}, us: {', '.join(cells)}",
                flush=True,
            )
    print("which are: ours, the usual ones, " + "; ".join(map(str, TILINGS)))


def _attention_us(kernels: CudaKernels, layout: HeadLayout, queries: Sequence[int], context: int) -> float:
    scale, heads, size = AttentionScale(layout.head_dim**-0.5), layout.num_kv_heads, layout.head_dim
    pages = context // BLOCK_TOKENS
    tables = torch.randperm(len(queries) * pages, device="cuda").int().view(len(queries), pages)
    cache = torch.randn(len(queries) * pages, 2, heads, BLOCK_TOKENS, size, device="cuda").bfloat16()
    q = torch.randn(sum(queries), layout.num_heads, size, device="cuda").bfloat16()
    batch = batch_of(queries, [context] * len(queries), tables)
    return us_per_call(
        partial(_attend, kernels, q, layout, batch, scale), copies_past_the_cache(cache)[:8], 3
    )
