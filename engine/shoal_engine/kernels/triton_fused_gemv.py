"""One decode row through a weight, with what stands around the product: norm before it, SiLU or residual after it.

y = f(norm(x) W^T) for one row. A warp owns whole weight rows, so that sums end in shuffles and nothing passes through
shared memory; the norm costs one more sum beside the product. The first tile of the weight is loaded before the wait for
the kernel before. Not for more rows: see `triton_fused_product.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from shoal_engine.kernels.fused_tiles import GemvTile
from shoal_engine.kernels.triton_fused_launch import launch_options, trigger, wait
from shoal_engine.kernels.triton_fused_operands import FusedWeight, NormInput
from shoal_engine.kernels.triton_jit import jit

_LOAD_BYTES = 16  # of a thread at once


@jit
def _weight_tile(weight, rows, start, n, k: tl.constexpr, step: tl.constexpr, inner, even: tl.constexpr):  # type: ignore[no-untyped-def]
    at = weight + rows.to(tl.int64) * k + start + inner
    if even:
        return tl.load(at)
    return tl.load(at, mask=(rows < n) & (start + inner < k), other=0.0)


@jit
def _vector_tile(x, start, k: tl.constexpr, inner, even: tl.constexpr):  # type: ignore[no-untyped-def]
    if even:
        return tl.load(x + start + inner)
    return tl.load(x + start + inner, mask=start + inner < k, other=0.0)


@jit
def _gemv_kernel(  # type: ignore[no-untyped-def]
    x, gain, weight, scale, bias, residual, out, eps, n,
    k: tl.constexpr, row_steps: tl.constexpr, warps: tl.constexpr, segments: tl.constexpr, lanes: tl.constexpr,
    even: tl.constexpr, normed: tl.constexpr, gated: tl.constexpr, scaled: tl.constexpr, biased: tl.constexpr,
    adds: tl.constexpr, early: tl.constexpr, overlap: tl.constexpr,
):  # fmt: skip
    """out [n]. Tiles are [warps, segments, row_steps, lanes]: Triton gives the first to warps, the last to their threads."""
    if early:
        trigger(overlap)
    step: tl.constexpr = segments * lanes
    steps: tl.constexpr = (k + step - 1) // step
    own = tl.arange(0, warps)[:, None] * row_steps + tl.arange(0, row_steps)[None, :]
    rows = tl.program_id(0) * (row_steps * warps) + own
    wide = rows[:, None, :, None]
    place = tl.arange(0, segments)[None, :, None, None] * lanes + tl.arange(0, lanes)[None, None, None, :]
    # The same for all warps, spelled out so that the vector is loaded in the layout it is multiplied in.
    inner = place + tl.zeros((warps, 1, 1, 1), tl.int32)
    up_weight = weight + n.to(tl.int64) * k
    tile = _weight_tile(weight, wide, 0, n, k, step, place, even)
    if gated:
        up_tile = _weight_tile(up_weight, wide, 0, n, k, step, place, even)
    if normed:
        gains = _vector_tile(gain, 0, k, inner, even)
    if scaled:
        scales = tl.load(scale + rows, mask=rows < n, other=0.0)
        if gated:
            up_scales = tl.load(scale + n + rows, mask=rows < n, other=0.0)
    if biased:
        biases = tl.load(bias + rows, mask=rows < n, other=0.0).to(tl.float32)
    wait(overlap)
    if adds:
        before = tl.load(residual + rows, mask=rows < n, other=0.0).to(tl.float32)
    acc = tl.zeros((warps, row_steps, lanes), tl.float32)
    up_acc = tl.zeros((warps, row_steps, lanes), tl.float32)
    square = tl.zeros((warps, 1, lanes), tl.float32)
    for index in range(0, steps):
        values = _vector_tile(x, index * step, k, inner, even).to(tl.float32)
        current = tile
        if gated:
            up_current = up_tile
        if normed:
            square += tl.sum(values * values, 1)
            values *= gains.to(tl.float32)
        if steps > 1:
            # Past the end the last tile is loaded again, from the cache, and not used.
            following = tl.minimum(index + 1, steps - 1) * step
            tile = _weight_tile(weight, wide, following, n, k, step, place, even)
            if gated:
                up_tile = _weight_tile(up_weight, wide, following, n, k, step, place, even)
            if normed:
                gains = _vector_tile(gain, following, k, inner, even)
        acc += tl.sum(current.to(tl.float32) * values, 1)
        if gated:
            up_acc += tl.sum(up_current.to(tl.float32) * values, 1)
    total = tl.sum(acc, 2)
    up_total = tl.sum(up_acc, 2)
    if normed:
        rstd = tl.math.rsqrt(tl.sum(square, 2) / k + eps)
        total *= rstd
        up_total *= rstd
    if scaled:
        total *= scales
        if gated:
            up_total *= up_scales
    if biased:
        total += biases
    if gated:
        total = total / (1.0 + tl.exp(-total)) * up_total
    if adds:
        total += before
    tl.store(out + rows, total.to(out.dtype.element_ty), mask=rows < n)
    if not early:
        trigger(overlap)


def multiply_row(
    x: Tensor,
    weight: FusedWeight,
    out: Tensor,
    tile: GemvTile,
    overlap: bool,
    norm: NormInput | None = None,
    gated: bool = False,
    adds: bool = False,
) -> None:
    """out [1, N] = f(norm(x) W^T): x [1, K]; gated: W [2N, K], silu(first half) * second; adds: plus out as it was."""
    k, n = weight.in_features, out.shape[1]
    lanes = 32 * _LOAD_BYTES // weight.values.element_size()
    block_n = tile.row_steps * tile.warps
    even = k % (tile.segments * lanes) == 0 and n % block_n == 0
    _gemv_kernel[(triton.cdiv(n, block_n),)](
        x, x if norm is None else norm.gain, weight.values, weight.scale_or(x), weight.bias_or(x), out, out,
        0.0 if norm is None else norm.eps, n,
        k=k, row_steps=tile.row_steps, warps=tile.warps, segments=tile.segments, lanes=lanes, even=even,
        normed=norm is not None, gated=gated, scaled=weight.scale is not None, biased=weight.bias is not None,
        adds=adds, early=tile.early, overlap=overlap, num_warps=tile.warps, **launch_options(overlap),
    )  # fmt: skip
