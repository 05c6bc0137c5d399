"""A softmax in parts: sums of values with the maximum and the weight they were taken with. Gluon, for `gluon_decode.py`.

A head's state is one warp's, its dims in the warp's lanes.
"""

from __future__ import annotations

from triton.experimental.gluon import language as gl

from shoal_engine.kernels.gluon_jit import jit
from shoal_engine.kernels.gluon_words import stored

HEADS = gl.constexpr(8)  # query heads that share a key: the narrow side of an m16n8k16 product
HIDDEN = gl.constexpr(float("-inf"))


@jit
def added(sums, tops, weights, heads_layout: gl.constexpr):  # type: ignore[no-untyped-def]
    """sums [P, 8, D] with tops and weights [P, 8] -> sum [8, D], maximum [8], weight [8], a head to a warp."""
    top = gl.max(tops, 0)
    factor = gl.exp2(tops - gl.where(top == HIDDEN, 0.0, top)[None, :])
    of_heads: gl.constexpr = gl.SliceLayout(1, heads_layout)
    total = gl.convert_layout(gl.sum(sums * factor[:, :, None], 0), heads_layout)
    weight = gl.convert_layout(gl.sum(weights * factor, 0), of_heads)
    return total, gl.convert_layout(top, of_heads), weight


@jit
def joined(sums, top, weight, more, more_top, more_weight):  # type: ignore[no-untyped-def]
    """Two states [8, D], [8], [8] of one softmax."""
    new_top = gl.maximum(top, more_top)
    shift = gl.where(new_top == HIDDEN, 0.0, new_top)
    fade, factor = gl.exp2(top - shift), gl.exp2(more_top - shift)
    return sums * fade[:, None] + more * factor[:, None], new_top, weight * fade + more_weight * factor


@jit
def normalised(total, weight, dtype: gl.constexpr):  # type: ignore[no-untyped-def]
    """The mean [8, D] that the sums of values stand for; 0 of nothing."""
    return stored(total / gl.where(weight == 0.0, 1.0, weight)[:, None], dtype)


@jit
def all_pieces(  # type: ignore[no-untyped-def]
    state, piece_sums, piece_stats, first_worker, pieces, head, num_kv_heads: gl.constexpr, group: gl.constexpr,
    head_dim: gl.constexpr, warps: gl.constexpr, flat: gl.constexpr, heads_layout: gl.constexpr,
):  # fmt: skip
    """All pieces of a cut request, in their order, read past the first-level cache (.cg): other processors wrote them.

    state: of nothing; there is no other way to say its layouts.
    """
    sums, top, weight = state
    p = gl.arange(0, warps, layout=gl.SliceLayout(1, gl.SliceLayout(2, flat)))
    h = gl.arange(0, HEADS, layout=gl.SliceLayout(0, gl.SliceLayout(2, flat)))
    d = gl.arange(0, head_dim, layout=gl.SliceLayout(0, gl.SliceLayout(1, flat)))
    for some in range(0, pieces, warps):
        one = some + p
        place = (2 * (first_worker + one) + (one == 0).to(gl.int32)) * num_kv_heads + head
        kept = (one < pieces)[:, None] & (h < group)[None, :]
        stats = piece_stats + place[:, None] * (2 * group) + h[None, :]
        tops = gl.load(stats, mask=kept, other=HIDDEN, cache_modifier=".cg")
        weights = gl.load(stats + group, mask=kept, other=0.0, cache_modifier=".cg")
        at = piece_sums + (place[:, None] * group + h[None, :])[:, :, None] * head_dim + d[None, None, :]
        parts = gl.load(at, mask=kept[:, :, None], other=0.0, cache_modifier=".cg")
        more, more_top, more_weight = added(parts, tops, weights, heads_layout)
        sums, top, weight = joined(sums, top, weight, more, more_top, more_weight)
    return sums, top, weight
