"""One pass over the logits: every row folded to columns of FOLD tokens, with the maximum and the mass of each column.

All that sampling needs of the vocabulary but for the few tokens it looks at again. Columns are those of `draws.draw`:
column c holds tokens c, c + columns, c + 2 columns, ...; the last V % FOLD tokens are one more column.
"""

from __future__ import annotations

import triton.language as tl

from shoal_engine.kernels.triton_jit import jit

FOLD = 128


@jit
def token_id(column, step, columns, fold: tl.constexpr):  # type: ignore[no-untyped-def]
    """The id of the step-th token of a column."""
    return tl.where(column < columns, column + step * columns, columns * fold + step)


@jit
def fold_columns(  # type: ignore[no-untyped-def]
    logits, temperature, maxima, masses, vocab, columns, width, stride,
    fold: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Program (r, i): columns i*block.. of row r of logits [R, V] -> maxima, masses [R, width] float32.

    A mass is relative to its column's maximum, at the row's temperature; of a greedy row (temperature 0) `masses` holds
    which token of the column is the first maximum. A NaN counts as +Inf, which marks the row as not ok.
    """
    row = tl.program_id(0)
    column = tl.program_id(1) * block + tl.arange(0, block)
    step = tl.arange(0, fold)
    ids = token_id(column[None, :], step[:, None], columns, fold)
    there = (column < width)[None, :] & (ids < vocab)
    x = tl.load(logits + row.to(tl.int64) * stride + ids, mask=there, other=float("-inf")).to(tl.float32)
    x = tl.where(x == x, x, float("inf"))
    top = tl.max(x, 0)
    heat = tl.load(temperature + row)
    if heat > 0.0:
        base = tl.where(tl.abs(top) == float("inf"), 0.0, top)
        mass = tl.sum(tl.exp((x - base[None, :]) * (1.0 / heat)), 0)
    else:
        mass = tl.min(tl.where(x == top[None, :], step[:, None], fold), 0).to(tl.float32)
    tl.store(maxima + row * width + column, top, mask=column < width)
    tl.store(masses + row * width + column, mass, mask=column < width)
