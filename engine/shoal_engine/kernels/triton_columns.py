"""One pass over the logits: every row folded to columns of FOLD tokens, with the maximum and the mass of each column.

All that sampling needs of the vocabulary but for the few tokens it looks at again. Columns are those of `draws.draw`:
column c holds tokens c, c + columns, c + 2 columns, ... Their number is a multiple of 16, so that threads read 16 bytes
at once: 256 rows of 151,936 logits took 68 us with an odd number, 2 bytes at once, and take 32 us (an H200).
"""

from __future__ import annotations

import triton.language as tl

from shoal_engine.kernels.triton_jit import jit

FOLD = 128
MANY_ROWS = 16


@jit
def fold_columns(  # type: ignore[no-untyped-def]
    logits, temperature, maxima, masses, vocab, columns, stride,
    fold: tl.constexpr, block: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    """Program (r, i): columns i*block.. of row r of logits [R, V] -> maxima, masses [R, columns] float32.

    A mass is relative to its column's maximum, at the row's temperature; of a greedy row (temperature 0) `masses` holds
    which token of the column is the first maximum. A NaN counts as +Inf, which marks the row as not ok. Reads `chunk`
    tokens of a column at a time: all for few rows, which wait for one round trip; half for many rows, which stream.
    """
    row = tl.program_id(0)
    column = tl.program_id(1) * block + tl.arange(0, block)
    kept = column < columns
    logits_row = logits + row.to(tl.int64) * stride
    heat = tl.load(temperature + row)
    top = tl.full((block,), float("-inf"), tl.float32)
    mass = tl.zeros((block,), tl.float32)
    for begin in range(0, fold, chunk):
        step = begin + tl.arange(0, chunk)
        ids = column[None, :] + step[:, None] * columns
        x = tl.load(logits_row + ids, mask=kept[None, :] & (ids < vocab), other=float("-inf")).to(tl.float32)
        x = tl.where(x == x, x, float("inf"))
        high = tl.max(x, 0)
        if heat > 0.0:
            scale = 1.4426950408889634 / heat
            high = tl.maximum(top, high)
            base = tl.where(tl.abs(high) == float("inf"), 0.0, high)
            mass = mass * tl.exp2((top - base) * scale) + tl.sum(tl.exp2((x - base[None, :]) * scale), 0)
        else:
            first = tl.min(tl.where(x == high[None, :], step[:, None], fold), 0).to(tl.float32)
            mass = tl.where(high > top, first, mass)
        top = tl.maximum(top, high)
    tl.store(maxima + row * columns + column, top, mask=kept)
    tl.store(masses + row * columns + column, mass, mask=kept)


def columns_tile(rows: int) -> tuple[int, int, int]:
    """block, chunk and warps of `fold_columns` for this many rows: one warp reduces without waiting for others."""
    return (16, FOLD, 4) if rows < MANY_ROWS else (32, 64, 1)
