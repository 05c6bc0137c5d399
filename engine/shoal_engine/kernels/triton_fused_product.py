"""2 to 64 decode rows through a weight on tensor cores, with what stands around the product fused to it.

The weight is the first operand: a tile of its rows by all rows of x, so the weight is read once. No norm is computed
before a product: the kernel that writes the residual also writes it times the next norm's gain and its squares' partial
sums, and the product of that is scaled by 1 / rms at its end. Narrow tiles are `gluon_narrow.py`'s; one row, where those do
not run or do not pay, is `triton_fused_gemv.py`'s.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from shoal_engine.kernels.fused_tiles import NarrowTile, ProductTile, row_block
from shoal_engine.kernels.gluon_narrow import multiply
from shoal_engine.kernels.triton_fused_epilogue import constants, finish, residual
from shoal_engine.kernels.triton_fused_launch import INTERPRETED, launch_options, trigger, wait
from shoal_engine.kernels.triton_fused_operands import FusedWeight, PartialSums, Stream
from shoal_engine.kernels.triton_jit import jit, jit_once

# The interpreter cannot multiply bfloat16; products of it are exact in float32.
_WIDEN = tl.constexpr(INTERPRETED)


@jit
def _weight_tile(weight, rows, there, start, k: tl.constexpr, block_k: tl.constexpr, fold: tl.constexpr, even: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """[block_n, block_k], or [fold, block_n, block_k / fold]."""
    if fold == 1:
        inner = start + tl.arange(0, block_k)[None, :]
        at, kept = weight + rows.to(tl.int64)[:, None] * k + inner, there[:, None] & (inner < k)
    else:
        part: tl.constexpr = block_k // fold
        inner = start + tl.arange(0, fold)[:, None, None] * part + tl.arange(0, part)[None, None, :]
        at = weight + rows.to(tl.int64)[None, :, None] * k + inner
        kept = there[None, :, None] & (inner < k)
    if even:
        return tl.load(at)
    return tl.load(at, mask=kept, other=0.0)


@jit
def _input_tile(x, cols, m, start, k: tl.constexpr, block_k: tl.constexpr, fold: tl.constexpr, even: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """x transposed: [block_k, block_m], or [fold, block_k / fold, block_m]."""
    if fold == 1:
        inner = start + tl.arange(0, block_k)[:, None]
        at, kept = x + cols[None, :] * k + inner, (cols < m)[None, :]
    else:
        part: tl.constexpr = block_k // fold
        inner = start + tl.arange(0, fold)[:, None, None] * part + tl.arange(0, part)[None, :, None]
        at, kept = x + cols[None, None, :] * k + inner, (cols < m)[None, None, :]
    if not even:
        kept = kept & (inner < k)
    return tl.load(at, mask=kept, other=0.0)


@jit
def _dot(w, v, acc, precision: tl.constexpr):  # type: ignore[no-untyped-def]
    if _WIDEN:
        return tl.dot(w.to(tl.float32), v.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(w.to(v.dtype), v, acc, input_precision=precision)


@jit_once("m", "num_squares")
def _product_kernel(  # type: ignore[no-untyped-def]
    x, squares, weight, scale, bias, gain, hidden, out, next_squares, partial, arrivals, eps, m, n, num_squares,
    k: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, parts: tl.constexpr,
    fold: tl.constexpr, head: tl.constexpr, square_block: tl.constexpr, even: tl.constexpr, normed: tl.constexpr,
    gated: tl.constexpr, scaled: tl.constexpr, biased: tl.constexpr, adds: tl.constexpr, early: tl.constexpr,
    overlap: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Program (tile, part) multiplies its weight rows, a part of K, by all rows of x. n: columns of out.

    A gated tile is block_n / 2 rows of the gate and the same rows of the up half.
    """
    if early:
        trigger(overlap)
    tile, part = tl.program_id(0), tl.program_id(1)
    steps: tl.constexpr = ((k + block_k - 1) // block_k + parts - 1) // parts
    lane, cols = tl.arange(0, block_n), tl.arange(0, block_m)
    if gated:
        half: tl.constexpr = block_n // 2
        rows = tile * half + lane % half
        there = rows < n
        rows += (lane // half) * n
    else:
        rows = tile * block_n + lane
        there = rows < n
    first = part * (steps * block_k)
    w = _weight_tile(weight, rows, there, first, k, block_k, fold, even)
    if head == 2:
        second = _weight_tile(weight, rows, there, first + block_k, k, block_k, fold, even)
    scales, biases, gains = constants(scale, bias, gain, rows, there, scaled, biased, adds)
    wait(overlap)
    before = residual(hidden, rows, there, cols, m, n, adds)
    rstd = tl.zeros((block_m,), tl.float32)
    if normed:
        at = tl.arange(0, square_block)
        kept = (cols < m)[:, None] & (at < num_squares)[None, :]
        some = tl.load(squares + cols[:, None] * num_squares + at[None, :], mask=kept, other=0.0)
        rstd = tl.math.rsqrt(tl.sum(some, 1) / k + eps)
    acc = tl.zeros((block_n, block_m) if fold == 1 else (fold, block_n, block_m), tl.float32)
    v = _input_tile(x, cols, m, first, k, block_k, fold, even)
    acc = _dot(w, v, acc, precision)
    if head == 2:
        v = _input_tile(x, cols, m, first + block_k, k, block_k, fold, even)
        acc = _dot(second, v, acc, precision)
    if steps > head:
        last = tl.minimum(first + steps * block_k, k)
        for start in range(first + head * block_k, last, block_k):
            w = _weight_tile(weight, rows, there, start, k, block_k, fold, even)
            v = _input_tile(x, cols, m, start, k, block_k, fold, even)
            acc = _dot(w, v, acc, precision)
    if not early:
        trigger(overlap)
    if fold > 1:
        acc = tl.sum(acc, 0)
    if parts == 1:
        finish(acc, rows, there, cols, rstd, scales, biases, gains, before, hidden, out, next_squares, tile, m, n,
               block_m, block_n, normed, gated, scaled, biased, adds)  # fmt: skip
    else:
        tile_sums = partial + tile * (parts * block_n * block_m)
        place = lane[:, None] * block_m + cols[None, :]
        tl.store(tile_sums + part * (block_n * block_m) + place, acc)
        tl.debug_barrier()  # every thread's sums are written before one thread says so
        if tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == parts - 1:
            acc = tl.zeros((block_n, block_m), tl.float32)
            for other in tl.static_range(0, parts):  # in their order: the same bits whoever is last
                acc += tl.load(tile_sums + other * (block_n * block_m) + place, cache_modifier=".cg")
            tl.store(arrivals + tile, 0)
            finish(acc, rows, there, cols, rstd, scales, biases, gains, before, hidden, out, next_squares, tile, m, n,
                   block_m, block_n, normed, gated, scaled, biased, adds)  # fmt: skip


def multiply_rows(
    x: Tensor,
    weight: FusedWeight,
    out: Tensor,
    tile: ProductTile | NarrowTile,
    sums: PartialSums,
    overlap: bool,
    norm_of: Stream | None = None,
    num_squares: int = 1,
    eps: float = 0.0,
    gated: bool = False,
    adds_to: Stream | None = None,
    gain: Tensor | None = None,
) -> None:
    """out [M, N] = x W^T: x [M, K], for narrow tiles of float8 weights SIXTEENTH of it in float16 where it is float16.

    norm_of: x is its `scaled`, and rows are divided by their rms, from num_squares partial sums each.
    gated: W [2N, K], silu(first half) * second. adds_to: the result is added to its residual, and what the next norm
    needs is written with `gain`, square_tiles(N, tile) partial sums a row; `out` is then not written.
    """
    if isinstance(tile, NarrowTile):
        multiply(x, weight, out, tile, overlap, norm_of, num_squares, eps, gated, adds_to, gain)
        return
    (m, k), rows_of_tile = x.shape, tile.block_n // 2 if gated else tile.block_n
    n = weight.out_features // 2 if gated else weight.out_features
    tiles = triton.cdiv(n, rows_of_tile)
    parts = parts_that_fit(tile, tiles, row_block(m), sums)
    even = n % rows_of_tile == 0 and k % (tile.block_k * parts) == 0
    steps = triton.cdiv(triton.cdiv(k, tile.block_k), parts)
    normed, stream = norm_of is not None, adds_to or Stream(out, out, x)
    _product_kernel[(tiles, parts)](
        x, norm_of.squares if norm_of is not None else x, weight.values, weight.scale_or(x), weight.bias_or(x),
        x if gain is None else gain, stream.hidden, stream.scaled, stream.squares,
        sums.sums, sums.arrivals, eps, m, n, num_squares,
        k=k, block_m=row_block(m), block_n=tile.block_n, block_k=tile.block_k, parts=parts, fold=tile.fold,
        head=min(tile.head, steps), square_block=triton.next_power_of_2(num_squares), even=even, normed=normed,
        gated=gated, scaled=weight.scale is not None, biased=weight.bias is not None, adds=adds_to is not None,
        early=tile.early, overlap=overlap, precision="ieee" if x.element_size() == 4 else "tf32",
        num_warps=tile.warps, num_stages=tile.stages, **launch_options(overlap),
    )  # fmt: skip


def square_tiles(n: int, tile: ProductTile | NarrowTile) -> int:
    """How many partial sums of squares a product of n columns leaves for each row."""
    return -(-n // tile.block_n)


def parts_that_fit(tile: ProductTile, tiles: int, block_m: int, sums: PartialSums) -> int:
    """The tile's parts, or 1 where the workspace is too small for them."""
    fits = tile.parts * tiles * tile.block_n * block_m <= sums.sums.numel() and tiles <= sums.arrivals.numel()
    return tile.parts if fits else 1
