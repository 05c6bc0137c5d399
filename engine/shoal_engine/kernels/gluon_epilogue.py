"""What a narrow product does with its sums before they reach memory: `triton_fused_epilogue.py` for Gluon."""

from __future__ import annotations

from triton.experimental.gluon import language as gl

from shoal_engine.kernels.gluon_jit import jit
from shoal_engine.kernels.gluon_words import stored
from shoal_engine.kernels.triton_fused_operands import SIXTEENTH


@jit
def constants_of(scale, bias, gain, rows, n, scaled: gl.constexpr, biased: gl.constexpr, adds: gl.constexpr):  # type: ignore[no-untyped-def]
    """What an epilogue reads of the weights, [rows] float32 each."""
    row = gl.minimum(rows, n - 1)
    scales = gl.zeros_like(row).to(gl.float32)
    biases, gains = scales, scales
    if scaled:
        # Only float8 weights have scales, and those are multiplied by SIXTEENTH of x.
        scales = gl.load(scale + row) * (1 / SIXTEENTH)
    if biased:
        biases = gl.load(bias + row).to(gl.float32)
    if adds:
        gains = gl.load(gain + row).to(gl.float32)
    return scales, biases, gains


@jit
def _scale(total, rstd, constants, normed: gl.constexpr, scaled: gl.constexpr, biased: gl.constexpr):  # type: ignore[no-untyped-def]
    if scaled:
        total *= constants[0][:, None]
    if normed:
        total *= rstd[None, :]
    if biased:
        total += constants[1][:, None]
    return total


@jit
def finish(  # type: ignore[no-untyped-def]
    total, rstd, constants, constants_up, before, hidden, out, next_squares, tile, rows, cols, place, m, n,
    normed: gl.constexpr, gated: gl.constexpr, scaled: gl.constexpr, biased: gl.constexpr, adds: gl.constexpr,
    final: gl.constexpr,
):  # fmt: skip
    """As `triton_fused_epilogue.finish`."""
    kept = (rows < n)[:, None] & (cols < m)[None, :]
    if gated:
        shape: gl.constexpr = total.shape
        gate, up = gl.split(total.reshape([2, shape[0] // 2, shape[1]]).permute((1, 2, 0)))
        gate = _scale(gl.convert_layout(gate, final, True), rstd, constants, normed, scaled, biased)
        up = _scale(gl.convert_layout(up, final, True), rstd, constants_up, normed, scaled, biased)
        value = gate / (1.0 + gl.exp(-gate)) * up
        gl.store(out + place, stored(value, out.dtype.element_ty), mask=kept)
    else:
        total = _scale(total, rstd, constants, normed, scaled, biased)
        if adds:
            # The norm sees the sum as later layers will read it: rounded to the residual's dtype.
            rounded = (total + before).to(gl.bfloat16)
            gl.store(hidden + place, rounded, mask=kept)
            total = gl.where(kept, rounded.to(gl.float32), 0.0)
            gl.store(out + place, stored(total * constants[2][:, None], out.dtype.element_ty), mask=kept)
            gl.store(next_squares + cols * gl.num_programs(0) + tile, gl.sum(total * total, 0), mask=cols < m)
        else:
            gl.store(out + place, total.to(gl.bfloat16), mask=kept)
