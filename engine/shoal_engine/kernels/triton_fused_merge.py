"""The end of a request that several workers attended: whoever finishes last adds their pieces, in their order."""

from __future__ import annotations

import triton.language as tl

from shoal_engine.kernels.triton_jit import jit


@jit
def merge_pieces(  # type: ignore[no-untyped-def]
    sums, stats, first_worker, pieces, head, target, num_kv_heads: tl.constexpr, group: tl.constexpr,
    head_dim: tl.constexpr, group_block: tl.constexpr, dim_block: tl.constexpr, piece_block: tl.constexpr,
):  # fmt: skip
    """target [group, D] from the pieces in a `triton_decode.DecodeWorkspace`, all of one block loaded before any is used.

    Read past the first-level cache (.cg): other processors wrote them.
    """
    rows, dims = tl.arange(0, group_block), tl.arange(0, dim_block)
    merged = tl.zeros((group_block, dim_block), tl.float32)
    top = tl.full((group_block,), float("-inf"), tl.float32)
    weight = tl.zeros((group_block,), tl.float32)
    for begin in range(0, pieces, piece_block):
        piece = begin + tl.arange(0, piece_block)
        slot = (2 * (first_worker + piece) + (piece == 0)) * num_kv_heads + head
        there = (piece < pieces)[:, None] & (rows < group)[None, :]
        at = (slot[:, None, None] * group + rows[None, :, None]) * head_dim + dims[None, None, :]
        kept = there[:, :, None] & (dims < head_dim)[None, None, :]
        part = tl.load(sums + at, mask=kept, other=0.0, cache_modifier=".cg")
        at = slot[:, None] * (2 * group) + rows[None, :]
        tops = tl.load(stats + at, mask=there, other=float("-inf"), cache_modifier=".cg")
        weights = tl.load(stats + at + group, mask=there, other=0.0, cache_modifier=".cg")
        new_top = tl.maximum(top, tl.max(tops, 0))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        factor, fade = tl.exp2(tops - shift[None, :]), tl.exp2(top - shift)
        weight = weight * fade + tl.sum(factor * weights, 0)
        merged = merged * fade[:, None] + tl.sum(part * factor[:, :, None], 0)
        top = new_top
    merged = merged / tl.where(weight == 0.0, 1.0, weight)[:, None]
    kept = (rows < group)[:, None] & (dims < head_dim)[None, :]
    tl.store(target + rows[:, None] * head_dim + dims[None, :], merged.to(target.dtype.element_ty), mask=kept)
