"""The rows whose cut lies below the candidates of `triton_truncated`: flat distributions, wide top_k, small min_p.

Finds the smallest kept logit by bisection over values, each step one sweep of the row, then draws in order of token id.
Exact, and slow only for the rows that need it: a program ends at once where the row was settled.
"""

from __future__ import annotations

import triton.language as tl

from shoal_engine.kernels.triton_jit import jit
from shoal_engine.kernels.triton_noise import uniform

_BELOW_ONE = tl.constexpr(1.0 - 2.0**-50)


@jit
def _sweep(row, low, top, heat, least, vocab, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of the tokens that min_p leaves: number and mass of those >= low, the smallest of them, the largest below low."""
    count = tl.zeros((block,), tl.int32)
    mass = tl.zeros((block,), tl.float64)
    over = tl.full((block,), float("inf"), tl.float32)
    under = tl.full((block,), float("-inf"), tl.float32)
    for start in range(0, vocab, block):
        ids = start + tl.arange(0, block)
        x = tl.load(row + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32)
        weight = tl.exp((x - top) * (1.0 / heat))
        left = (x > float("-inf")) & (weight >= least)
        reaches = left & (x >= low)
        count += reaches.to(tl.int32)
        mass += tl.where(reaches, weight, 0.0).to(tl.float64)
        over = tl.minimum(over, tl.where(reaches, x, float("inf")))
        under = tl.maximum(under, tl.where(left & (x < low), x, float("-inf")))
    return tl.sum(count, 0), tl.sum(mass, 0), tl.min(over, 0), tl.max(under, 0)


@jit
def _largest_enough(row, floor, k, need, top, heat, least, vocab, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest logit >= floor such that it and all above are at least k in number and `need` in mass; else floor."""
    count, mass, low, under = _sweep(row, floor, top, heat, least, vocab, block)
    high = top
    if (count < k) | (mass < need):
        low = floor
        high = floor
    while low < high:
        middle = low + (high - low) * 0.5
        middle = tl.where(middle > low, middle, high)
        count, mass, over, under = _sweep(row, middle, top, heat, least, vocab, block)
        if (count >= k) & (mass >= need):
            low = over
        else:
            high = under
    return low


@jit
def _draw(row, low, top, heat, least, u, vocab, block: tl.constexpr):  # type: ignore[no-untyped-def]
    _count, total, _over, _under = _sweep(row, low, top, heat, least, vocab, block)
    point = total * tl.minimum(u, _BELOW_ONE)
    running = total * 0.0
    chosen = -1
    last = 0
    for start in range(0, vocab, block):
        ids = start + tl.arange(0, block)
        x = tl.load(row + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32)
        weight = tl.exp((x - top) * (1.0 / heat))
        weight = tl.where((x > float("-inf")) & (weight >= least) & (x >= low), weight, 0.0)
        sums = running + tl.cumsum(weight.to(tl.float64), 0)
        after = tl.max(sums, 0)
        last = tl.maximum(last, tl.max(tl.where(weight > 0.0, ids, 0), 0))
        if (chosen < 0) & (after > point):
            chosen = start + tl.sum((sums <= point).to(tl.int32), 0)
        running = after
    return tl.where(chosen < 0, last, chosen)


@jit
def choose_deep(  # type: ignore[no-untyped-def]
    logits, temperature, top_k, top_p, min_p, keys, positions, maxima, deep, token_ids,
    vocab, columns, stride, columns_block: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Program r: token_ids[r] where deep[r] says that it is still open."""
    index = tl.program_id(0)
    if tl.load(deep + index) != 0:
        heat, least = tl.load(temperature + index), tl.load(min_p + index)
        k, p = tl.load(top_k + index), tl.load(top_p + index)
        column = tl.arange(0, columns_block)
        tops = tl.load(maxima + index * columns + column, mask=column < columns, other=float("-inf"))
        top = tl.max(tops, 0)
        row = logits + index.to(tl.int64) * stride
        low = top * 0.0 - float("inf")
        if k < vocab:
            nothing = (top * 0.0).to(tl.float64)
            low = _largest_enough(row, low, k, nothing, top, heat, least, vocab, block)
        if p < float("inf"):
            _count, whole, _over, _under = _sweep(row, low, top, heat, least, vocab, block)
            low = _largest_enough(row, low, 1, p * whole, top, heat, least, vocab, block)
        u = uniform(tl.load(keys + index), tl.load(positions + index))
        tl.store(token_ids + index, _draw(row, low, top, heat, least, u, vocab, block).to(tl.int64))
