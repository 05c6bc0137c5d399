"""A token from a distribution cut by min_p, top_k and top_p, without a sort: few candidates, compared in pairs.

At least k tokens reach the k-th largest column maximum, so a value that k columns reach bounds the k-th logit from
below, and only columns that reach it are looked at again. A row whose cut may lie below its candidates is left to
`triton_deep`. Kept sets and the order of the draw are those of `draws.draw_truncated`.
"""

from __future__ import annotations

import triton.language as tl

from shoal_engine.kernels.triton_choice import column_masses, is_cut
from shoal_engine.kernels.triton_jit import jit
from shoal_engine.kernels.triton_noise import uniform

MAX_COLUMNS = 512  # that are looked at again
MAX_CANDIDATES = 1024
NUCLEUS_COLUMNS = 96  # of a row that has no small top_k; nuclei of text are tens of tokens
_BELOW_ONE = tl.constexpr(1.0 - 2.0**-50)


@jit
def _floor(tops, there, top, wanted, ways: tl.constexpr):  # type: ignore[no-untyped-def]
    """A value that at least `wanted` column maxima reach, and not many more; -Inf where too few are finite.

    `ways` values between the bounds are tried at once: a round costs the wait for all threads, hardly the comparisons.
    """
    finite = there & (tops > float("-inf"))
    count = tl.sum(finite.to(tl.int32), 0)
    low = tl.min(tl.where(finite, tops, float("inf")), 0)
    if count <= wanted:
        low = top * 0.0 - float("inf")
    high = top
    rounds = 0
    while (count > wanted + wanted // 8) & (rounds < 10):
        tried = low + (high - low) * ((tl.arange(0, ways) + 1).to(tl.float32) / (ways + 1))
        reached = tl.sum((there[:, None] & (tops[:, None] >= tried[None, :])).to(tl.int32), 0)
        enough = reached >= wanted
        count = tl.minimum(count, tl.min(tl.where(enough, reached, count), 0))
        low = tl.maximum(low, tl.max(tl.where(enough, tried, low), 0))
        high = tl.minimum(high, tl.min(tl.where(enough, high, tried), 0))
        rounds += 1
    return low


@jit
def _collect(  # type: ignore[no-untyped-def]
    logits_row, chosen, num_columns, low, values, ids, columns, vocab,
    fold: tl.constexpr, group: tl.constexpr, most: tl.constexpr,
):  # fmt: skip
    """Tokens of `num_columns` columns with a logit of at least `low`, to values and ids; returns how many there are."""
    step = tl.arange(0, fold)
    found = 0
    for start in range(0, num_columns, group):
        place = start + tl.arange(0, group)
        column = tl.load(chosen + place, mask=place < num_columns, other=0)
        tokens = column[None, :] + step[:, None] * columns
        there = (place < num_columns)[None, :] & (tokens < vocab)
        x = tl.load(logits_row + tokens, mask=there, other=float("-inf")).to(tl.float32)
        hit = there & (x >= low) & (x > float("-inf"))
        flat = tl.reshape(hit.to(tl.int32), (fold * group,))
        at = found + tl.cumsum(flat, 0) - 1
        keep = (flat > 0) & (at < most)
        tl.store(values + at, tl.reshape(x, (fold * group,)), mask=keep)
        tl.store(ids + at, tl.reshape(tokens, (fold * group,)), mask=keep)
        found += tl.sum(flat, 0)
    return found


@jit
def _standing(values, v, count, top, heat, most: tl.constexpr, pairs: tl.constexpr):  # type: ignore[no-untyped-def]
    """For each candidate: how many are strictly larger, and their mass (float64)."""
    larger = tl.zeros((most,), tl.int32)
    mass = tl.zeros((most,), tl.float64)
    for start in range(0, count, pairs):
        other = start + tl.arange(0, pairs)
        x = tl.load(values + other, mask=other < count, other=float("-inf"))
        weight = tl.exp((x - top) * (1.0 / heat)).to(tl.float64)
        above = x[None, :] > v[:, None]
        larger += tl.sum(above.to(tl.int32), 1)
        mass += tl.sum(tl.where(above, weight[None, :], 0.0), 1)
    return larger, mass


@jit
def _draw(ids, kept, token, weight, count, u, most: tl.constexpr, pairs: tl.constexpr):  # type: ignore[no-untyped-def]
    """By the running mass of kept candidates in order of token id: the last whose predecessors do not exceed the point."""
    before = tl.zeros((most,), tl.float64)
    for start in range(0, count, pairs):
        other = start + tl.arange(0, pairs)
        other_id = tl.load(ids + other, mask=other < count, other=0)
        mass = tl.load(kept + other, mask=other < count, other=0.0).to(tl.float64)
        before += tl.sum(tl.where(other_id[None, :] < token[:, None], mass[None, :], 0.0), 1)
    point = tl.sum(weight.to(tl.float64), 0) * tl.minimum(u, _BELOW_ONE)
    return tl.max(tl.where((weight > 0.0) & (before <= point), token, -1), 0)


@jit
def _choose_kept(  # type: ignore[no-untyped-def]
    values, ids, kept, count, low, top, heat, k, p, least, total, u, vocab,
    most: tl.constexpr, pairs: tl.constexpr,
):  # fmt: skip
    """The token, or -1 where tokens outside the candidates may be kept."""
    place = tl.arange(0, most)
    v = tl.load(values + place, mask=place < count, other=float("-inf"))
    token = tl.load(ids + place, mask=place < count, other=0)
    weight = tl.exp((v - top) * (1.0 / heat))
    larger, above = _standing(values, v, count, top, heat, most, pairs)
    stay = (place < count) & (weight >= least) & (larger < k)
    settled = (count >= k) | (low == float("-inf"))
    settled = settled | ((least > 0.0) & (tl.exp((low - top) * (1.0 / heat)) <= least))
    mass = weight.to(tl.float64)
    whole = tl.where(settled, tl.sum(tl.where(stay, mass, 0.0), 0), total)
    alone = (k >= vocab) & (least <= 0.0) & (tl.sum(mass, 0) >= p * whole)
    weight = tl.where(stay & (above < p * whole), weight, 0.0)
    tl.store(kept + place, weight, mask=place < count)
    tl.debug_barrier()
    chosen = _draw(ids, kept, token, weight, count, u, most, pairs)
    return tl.where(settled | alone, chosen, -1)


@jit
def choose_truncated(  # type: ignore[no-untyped-def]
    logits, temperature, top_k, top_p, min_p, keys, positions, maxima, masses, ok, token_ids, deep,
    chosen, values, ids, kept, vocab, columns, stride,
    fold: tl.constexpr, block: tl.constexpr, group: tl.constexpr,
    narrow: tl.constexpr, most_columns: tl.constexpr, most: tl.constexpr,
    ways: tl.constexpr, pairs: tl.constexpr,
):  # fmt: skip
    """Program r: token_ids[r] of a truncated row, or deep[r] = 1. chosen, values, ids, kept: workspace of each row."""
    row = tl.program_id(0)
    heat = tl.load(temperature + row)
    k, p, least = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
    unsettled = 0
    if (heat > 0.0) & is_cut(k, p, least, vocab) & (tl.load(ok + row) != 0):
        column = tl.arange(0, block)
        there = column < columns
        tops = tl.load(maxima + row * columns + column, mask=there, other=float("-inf"))
        mass = tl.load(masses + row * columns + column, mask=there, other=0.0)
        top = tl.max(tops, 0)
        low = _floor(tops, there, top, tl.where(k < most_columns // 2, k, narrow), ways)
        reaches = there & (tops >= low) & (tops > float("-inf"))
        number = tl.sum(reaches.to(tl.int32), 0)
        at = tl.cumsum(reaches.to(tl.int32), 0) - 1
        tl.store(chosen + row * most_columns + at, column, mask=reaches & (at < most_columns))
        tl.debug_barrier()
        unsettled = 1
        if number <= most_columns:
            values += row * most
            ids += row * most
            found = _collect(
                logits + row.to(tl.int64) * stride, chosen + row * most_columns, number, low, values, ids,
                columns, vocab, fold, group, most,
            )  # fmt: skip
            tl.debug_barrier()
            if found <= most:
                total = tl.sum(column_masses(tops, top, mass, heat), 0)
                u = uniform(tl.load(keys + row), tl.load(positions + row))
                token = _choose_kept(
                    values, ids, kept + row * most, found, low, top, heat, k, p, least, total, u, vocab,
                    most, pairs,
                )  # fmt: skip
                if token >= 0:
                    tl.store(token_ids + row, token.to(tl.int64))
                    unsettled = 0
    tl.store(deep + row, unsettled)
