"""What a fused product does with its sums before they reach memory: scales, bias, SiLU, the residual and its squares."""

from __future__ import annotations

import triton.language as tl

from shoal_engine.kernels.triton_jit import jit


@jit
def constants(scale, bias, gain, rows, there, scaled: tl.constexpr, biased: tl.constexpr, adds: tl.constexpr):  # type: ignore[no-untyped-def]
    """What an epilogue reads of the weights, [block_n] float32 each; loaded before the wait."""
    scales, biases, gains = 1.0, 0.0, 1.0
    if scaled:
        scales = tl.load(scale + rows, mask=there, other=0.0)
    if biased:
        biases = tl.load(bias + rows, mask=there, other=0.0).to(tl.float32)
    if adds:
        gains = tl.load(gain + rows, mask=there, other=0.0).to(tl.float32)
    return scales, biases, gains


@jit
def residual(hidden, rows, there, cols, m, n, adds: tl.constexpr):  # type: ignore[no-untyped-def]
    """The residual under a tile, [block_n, block_m] float32; loaded before the product, beside its first input."""
    before = 0.0
    if adds:
        place = cols.to(tl.int64)[None, :] * n + rows[:, None]
        before = tl.load(hidden + place, mask=there[:, None] & (cols < m)[None, :], other=0.0).to(tl.float32)
    return before


@jit
def finish(  # type: ignore[no-untyped-def]
    acc, rows, there, cols, rstd, scales, biases, gains, before, hidden, out, next_squares, tile, m, n,
    block_m: tl.constexpr, block_n: tl.constexpr, normed: tl.constexpr, gated: tl.constexpr,
    scaled: tl.constexpr, biased: tl.constexpr, adds: tl.constexpr,
):  # fmt: skip
    """acc [block_n, block_m] of weight rows `rows` and x rows `cols` to out [M, N].

    adds: hidden [M, N] += it, out = hidden * gain, next_squares [M, tiles] = sums over this tile of hidden^2.
    """
    if scaled:
        acc *= scales[:, None]
    if normed:
        acc *= rstd[None, :]
    if biased:
        acc += biases[:, None]
    if gated:
        half: tl.constexpr = block_n // 2
        both = tl.permute(tl.reshape(acc, (2, half, block_m)), (1, 2, 0))
        gate, up = tl.split(both)
        columns = tile * half + tl.arange(0, half)
        place = cols.to(tl.int64)[None, :] * n + columns[:, None]
        kept = (columns < n)[:, None] & (cols < m)[None, :]
        value = gate / (1.0 + tl.exp(-gate)) * up
        tl.store(out + place, value.to(out.dtype.element_ty), mask=kept)
    else:
        place = cols.to(tl.int64)[None, :] * n + rows[:, None]
        kept = there[:, None] & (cols < m)[None, :]
        if adds:
            total = acc + before
            # The norm sees the sum as later layers will read it: rounded to the residual's dtype.
            rounded = total.to(hidden.dtype.element_ty)
            tl.store(hidden + place, rounded, mask=kept)
            total = rounded.to(tl.float32)
            tl.store(out + place, (total * gains[:, None]).to(out.dtype.element_ty), mask=kept)
            tiles = tl.num_programs(0)
            tl.store(next_squares + cols * tiles + tile, tl.sum(total * total, 0), mask=cols < m)
        else:
            tl.store(out + place, acc.to(out.dtype.element_ty), mask=kept)
