"""The token of a greedy row and of a row drawn from its whole vocabulary, from the columns of `triton_columns`.

The draw inverts the distribution in the order of `draws.draw`, so that a seed means the same tokens on CPU and GPU.
"""

from __future__ import annotations

import triton.language as tl

from shoal_engine.kernels.triton_jit import jit
from shoal_engine.kernels.triton_noise import uniform

_BELOW_ONE = tl.constexpr(1.0 - 2.0**-50)


@jit
def is_cut(top_k, top_p, min_p, vocab):  # type: ignore[no-untyped-def]
    """Whether a row truncates its distribution. Scalars."""
    return (top_k < vocab) | (top_p < float("inf")) | (min_p > 0.0)


@jit
def column_masses(tops, top, masses, heat):  # type: ignore[no-untyped-def]
    """Column maxima and masses -> masses relative to the row's maximum, float64."""
    return (masses * tl.exp((tops - top) * (1.0 / heat))).to(tl.float64)


@jit
def _first_of_largest(tops, top, first, column, columns, vocab):  # type: ignore[no-untyped-def]
    ids = column + first.to(tl.int32) * columns
    return tl.min(tl.where(tops == top, ids, vocab), 0)


@jit
def _draw(  # type: ignore[no-untyped-def]
    logits_row, tops, top, masses, heat, u, column, columns, vocab, fold: tl.constexpr
):  # fmt: skip
    """A column by its mass, then a token inside it by what is left of the uniform number."""
    sums = tl.cumsum(column_masses(tops, top, masses, heat), 0)
    total = tl.max(sums, 0)
    chosen = tl.minimum(tl.sum((sums <= total * tl.minimum(u, _BELOW_ONE)).to(tl.int32), 0), columns - 1)
    below = tl.max(tl.where(column < chosen, sums, 0.0), 0)
    own = tl.max(tl.where(column <= chosen, sums, 0.0), 0) - below
    rest = tl.minimum(tl.maximum((u * total - below) / own, 0.0), _BELOW_ONE)
    ids = chosen + tl.arange(0, fold) * columns
    x = tl.load(logits_row + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32)
    inside = tl.cumsum(tl.exp((x - top) * (1.0 / heat)).to(tl.float64), 0)
    place = tl.sum((inside <= tl.max(inside, 0) * rest).to(tl.int32), 0)
    return chosen + tl.minimum(place, fold - 1) * columns


@jit
def choose(  # type: ignore[no-untyped-def]
    logits, temperature, top_k, top_p, min_p, keys, positions, maxima, masses, token_ids, ok,
    vocab, columns, stride, fold: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Program r: token_ids[r] int64 and ok[r] int8 of row r. Of a truncated row only ok, and token 0."""
    row = tl.program_id(0)
    column = tl.arange(0, block)
    tops = tl.load(maxima + row * columns + column, mask=column < columns, other=float("-inf"))
    mass = tl.load(masses + row * columns + column, mask=column < columns, other=0.0)
    top = tl.max(tops, 0)
    fine = tl.abs(top) < float("inf")
    tl.store(ok + row, fine.to(tl.int8))
    heat = tl.load(temperature + row)
    cut = is_cut(tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row), vocab)
    token = row * 0
    if fine:
        if heat <= 0.0:
            token = _first_of_largest(tops, top, mass, column, columns, vocab)
        elif cut == 0:
            u = uniform(tl.load(keys + row), tl.load(positions + row))
            token = _draw(
                logits + row.to(tl.int64) * stride,
                tops,
                top,
                mass,
                heat,
                u,
                column,
                columns,
                vocab,
                fold,
            )
    tl.store(token_ids + row, token.to(tl.int64))
