"""1 to 32 decode rows through a weight in narrow tiles of it, each by the whole of K: Gluon, Hopper, no interpreter.

What `triton_fused_product._product_kernel` computes, for bfloat16 rows, without parts, arrivals or weights in shared
memory: the warps of a program share K, and each loads its weights from memory straight into the registers that
`mma.sync` reads, as many as fit before the wait. Both operands hold 16 contiguous bytes of K in a thread: products then
meet in another order than K's, which a sum does not mind. Launched by `triton_fused_product.py`.

Float8 weights are widened to float16, for which the card has an instruction, and so is x: a sixteenth of it, which reaches
to 10^6 and keeps all bits of bfloat16 down to 10^-4. Scales make up for it. Where every weight is float8, x is written so;
beside others it is bfloat16 and converted in registers.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from shoal_engine.kernels.fused_tiles import NarrowTile, row_block
from shoal_engine.kernels.gluon_epilogue import constants_of, finish
from shoal_engine.kernels.gluon_jit import jit, jit_once
from shoal_engine.kernels.gluon_words import halves, numbers, sixteenths
from shoal_engine.kernels.gpu import kind_of
from shoal_engine.kernels.triton_fused_launch import INTERPRETED, launch_options
from shoal_engine.kernels.triton_fused_operands import FusedWeight, Stream

_MOST_REGISTERS = 248
# Registers of a thread beside words in flight and sums; a loop has pointers to move. Of float8, by row block: a program that
# waits now and then matters less than a second one beside it.
_SPARE, _LOOP_SPARE, _FLOAT8_SPARE = 36, 64, {8: 36, 16: 44, 32: 68}


@jit
def _with(values, value):  # type: ignore[no-untyped-def]
    return values + (value,)  # noqa: RUF005 (Triton knows no starred tuple)


@jit
def _weights(  # type: ignore[no-untyped-def]
    weight, tile, n, start, k: gl.constexpr, block_n: gl.constexpr, chunk: gl.constexpr, warps: gl.constexpr,
    packed: gl.constexpr, gated: gl.constexpr, even: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """Words of the first operand, [warps, block_n, chunk / packed] int32, from `start` of each warp's part of K.

    Rows past the last are the last again.
    """
    pitch: gl.constexpr = k // packed
    half: gl.constexpr = block_n // 2 if gated else block_n
    warp = gl.arange(0, warps, gl.SliceLayout(1, gl.SliceLayout(2, layout)))[:, None, None]
    lane = gl.arange(0, block_n, gl.SliceLayout(0, gl.SliceLayout(2, layout)))[None, :, None]
    inner = gl.arange(0, chunk // packed, gl.SliceLayout(0, gl.SliceLayout(1, layout)))[None, None, :]
    row = lane % half
    if not even:
        row = gl.minimum(row, n - 1 - tile * half)
    if gated:
        row += (lane // half) * n
    first = weight + tile.to(gl.int64) * (half * pitch) + start // packed
    return gl.load(first + (row * pitch + warp * (pitch // warps) + inner), eviction_policy="evict_first")


@jit
def _inputs(  # type: ignore[no-untyped-def]
    x, m, start, k: gl.constexpr, block_m: gl.constexpr, chunk: gl.constexpr, warps: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """Words of the second operand, [warps, chunk / 2, block_m] int32; rows of x past the last are the last again."""
    warp = gl.arange(0, warps, gl.SliceLayout(1, gl.SliceLayout(2, layout)))[:, None, None]
    inner = gl.arange(0, chunk // 2, gl.SliceLayout(0, gl.SliceLayout(2, layout)))[None, :, None]
    col = gl.arange(0, block_m, gl.SliceLayout(0, gl.SliceLayout(1, layout)))[None, None, :]
    return gl.load(x + start // 2 + (gl.minimum(col, m - 1) * (k // 2) + warp * (k // warps // 2) + inner))


@jit
def _first_operand(words, packed: gl.constexpr, compute: gl.constexpr, layout: gl.constexpr):  # type: ignore[no-untyped-def]
    return gl.convert_layout(numbers(words, packed, compute), layout, assert_trivial=True)


@jit
def _second_operand(words, stored: gl.constexpr, compute: gl.constexpr, layout: gl.constexpr):  # type: ignore[no-untyped-def]
    shape: gl.constexpr = words.shape
    if stored != compute:
        words = sixteenths(words)
    low, high = halves(words, compute)
    both = gl.join(low, high).permute((0, 1, 3, 2)).reshape([shape[0], shape[1] * 2, shape[2]])
    return gl.convert_layout(both, layout, assert_trivial=True)


@jit
def _multiply_add(  # type: ignore[no-untyped-def]
    w, v, accs, turn: gl.constexpr, packed: gl.constexpr, stored: gl.constexpr, width: gl.constexpr, mma: gl.constexpr
):  # fmt: skip
    """To one of the accumulators, by turns: a chain of one would wait for each product."""
    chains: gl.constexpr = len(accs)
    compute: gl.constexpr = gl.float16 if packed == 4 else gl.bfloat16
    first = _first_operand(w, packed, compute, gl.DotOperandLayout(0, mma, width))
    second = _second_operand(v, stored, compute, gl.DotOperandLayout(1, mma, width))
    added = ()
    for one in gl.static_range(chains):
        acc = accs[one]
        if one == turn % chains:
            acc = mma_v2(first, second, acc)
        added = _with(added, acc)
    return added


@jit
def _sum(accs):  # type: ignore[no-untyped-def]
    acc = accs[0]
    for chain in gl.static_range(1, len(accs)):
        acc += accs[chain]
    return acc


@jit_once("m", "n", "num_squares")
def _narrow(  # type: ignore[no-untyped-def]
    x, squares, weight, scale, bias, gain, hidden, out, next_squares, eps, m, n, num_squares,
    k: gl.constexpr, block_m: gl.constexpr, block_n: gl.constexpr, chunk: gl.constexpr, head: gl.constexpr,
    warps: gl.constexpr, row_warps: gl.constexpr, packed: gl.constexpr, square_block: gl.constexpr, even: gl.constexpr,
    normed: gl.constexpr, gated: gl.constexpr, scaled: gl.constexpr, biased: gl.constexpr, adds: gl.constexpr,
    early: gl.constexpr, overlap: gl.constexpr,
):  # fmt: skip
    """A program multiplies block_n weight rows by all rows of x, `head` chunks of both in flight. n: columns of out.

    A gated tile is block_n / 2 rows of the gate and the same rows of the up half. packed: weights in four bytes.
    """
    if early and overlap:
        gdc_launch_dependents()
    turns: gl.constexpr = k // (warps * chunk * head)
    half: gl.constexpr = block_n // 2 if gated else block_n
    chains: gl.constexpr = max(1, min(head, 512 * row_warps // (block_n * block_m)))
    width: gl.constexpr = 4 * packed  # numbers of a thread's 16 bytes of weights
    mma: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [warps, row_warps, 1], [1, 16, 8])
    first: gl.constexpr = gl.DotOperandLayout(0, mma, 4)
    second: gl.constexpr = gl.DotOperandLayout(1, mma, width // 2)
    # A row of block_m sums for every weight row: a warp reads 16 of them, two columns each, without a bank conflict.
    shared: gl.constexpr = gl.SwizzledSharedLayout(2, 32 // block_m, block_m // 2, [2, 1, 0])
    tall: gl.constexpr = min(16, half)
    whole: gl.constexpr = gl.BlockedLayout(
        [warps, 1, 1], [1, tall, 32 // tall], [1, 1, warps * row_warps], [1, 2, 0]
    )
    final: gl.constexpr = gl.SliceLayout(0, whole)
    cols = gl.arange(0, block_m, gl.SliceLayout(0, final))
    col = gl.minimum(cols, m - 1)
    sums = gl.allocate_shared_memory(gl.float32, [warps, block_n, block_m], shared)
    stored: gl.constexpr = x.dtype.element_ty
    weight = weight.to(gl.pointer_type(gl.int32))
    words = x.to(gl.pointer_type(gl.int32))

    tile = gl.program_id(0)
    ws, xs, accs = (), (), ()
    for step in gl.static_range(head):
        w = _weights(weight, tile, n, step * chunk, k, block_n, chunk, warps, packed, gated, even, first)
        ws = _with(ws, w)
    rows = tile * half + gl.arange(0, half, gl.SliceLayout(1, final))
    constants = constants_of(scale, bias, gain, rows, n, scaled, biased, adds)
    constants_up = constants
    if gated:
        constants_up = constants_of(scale + n, bias + n, gain, rows, n, scaled, biased, False)
    for _ in gl.static_range(chains):
        accs = _with(accs, gl.zeros((warps, block_n, block_m), gl.float32, mma))
    if overlap:
        gdc_wait()
    for step in gl.static_range(head):
        xs = _with(xs, _inputs(words, m, step * chunk, k, block_m, chunk, warps, second))
    rstd = gl.zeros_like(cols).to(gl.float32)
    if normed:
        part = gl.arange(0, square_block, gl.SliceLayout(1, final))[:, None]
        some = gl.load(squares + col[None, :] * num_squares + part, mask=part < num_squares, other=0.0)
    place = col.to(gl.int64)[None, :] * n + gl.minimum(rows, n - 1)[:, None]
    before = rstd
    if adds:
        before = gl.load(hidden + place).to(gl.float32)
    for turn in range(1, turns):
        refilled, refilled_xs = (), ()
        for step in gl.static_range(head):
            accs = _multiply_add(ws[step], xs[step], accs, step, packed, stored, width, mma)
            at = (turn * head + step) * chunk
            w = _weights(weight, tile, n, at, k, block_n, chunk, warps, packed, gated, even, first)
            refilled = _with(refilled, w)
            refilled_xs = _with(refilled_xs, _inputs(words, m, at, k, block_m, chunk, warps, second))
        ws, xs = refilled, refilled_xs
    for step in gl.static_range(head):
        accs = _multiply_add(ws[step], xs[step], accs, step, packed, stored, width, mma)
    if not early and overlap:
        gdc_launch_dependents()
    if normed:
        rstd = gl.rsqrt(gl.sum(some, 0) / k + eps)
    sums.store(_sum(accs))
    finish(gl.sum(sums.load(whole), 0), rstd, constants, constants_up, before, hidden, out, next_squares, tile, rows, cols,
            place, m, n, normed, gated, scaled, biased, adds, final)  # fmt: skip


def runs_on(device: torch.device, dtype: torch.dtype) -> bool:
    """dtype: of the rows."""
    return (
        not INTERPRETED
        and dtype == torch.bfloat16
        and device.type != "cpu"
        and kind_of(device).capability[0] == 9
    )


def multiply(
    x: Tensor, weight: FusedWeight, out: Tensor, tile: NarrowTile, overlap: bool, norm_of: Stream | None,
    num_squares: int, eps: float, gated: bool, adds_to: Stream | None, gain: Tensor | None,
) -> None:  # fmt: skip
    """As `triton_fused_product.multiply_rows`: up to 32 rows, bfloat16 or, beside float8 weights, a sixteenth in float16.

    K in whole chunks of two warps or more.
    """
    (m, k), half = x.shape, tile.block_n // 2 if gated else tile.block_n
    n = weight.out_features // 2 if gated else weight.out_features
    packed, chunk, warps, block_m = _packed(weight), _chunk(weight), _warps(k, weight, tile), row_block(m)
    threads = 32 * warps * tile.row_warps
    head, registers = _in_flight(
        k // (warps * chunk), tile.block_n // tile.row_warps, block_m, threads, packed, tile.head
    )
    stream = adds_to or Stream(out, out, x)
    _narrow[(triton.cdiv(n, half),)](
        x, norm_of.squares if norm_of is not None else x, weight.values, weight.scale_or(x), weight.bias_or(x),
        x if gain is None else gain, stream.hidden, stream.scaled, stream.squares, eps, m, n, num_squares,
        k=k, block_m=block_m, block_n=tile.block_n, chunk=chunk, head=head, warps=warps, row_warps=tile.row_warps,
        packed=packed, square_block=triton.next_power_of_2(num_squares), even=n % half == 0, normed=norm_of is not None,
        gated=gated, scaled=weight.scale is not None, biased=weight.bias is not None, adds=adds_to is not None,
        early=tile.early, overlap=overlap, num_warps=threads // 32, maxnreg=registers, **launch_options(overlap),
    )  # fmt: skip


def _packed(weight: FusedWeight) -> int:
    return 4 // weight.values.element_size()


def _chunk(weight: FusedWeight) -> int:
    """Of a warp's K at a time: two loads of 16 bytes for each row, by four threads."""
    return 32 * _packed(weight)


def _warps(k: int, weight: FusedWeight, tile: NarrowTile) -> int:
    """The tile's, or as many fewer as share K evenly."""
    warps = tile.warps
    while warps > 1 and k % (warps * _chunk(weight)):
        warps //= 2
    return warps


def _in_flight(
    steps: int, block_n: int, block_m: int, threads: int, packed: int, most: int
) -> tuple[int, int]:
    """Chunks in flight, which divide `steps`, and a bound of a thread's registers with them.

    Told no bound, the compiler delays loads of x until it needs few more registers than the weights alone.
    """
    bound = min(_MOST_REGISTERS, 2**16 // threads // 8 * 8)
    head, needed = 1, bound
    for count in range(min(steps, most), 0, -1):
        words = count * (block_n * 2 // packed + block_m) * packed // 2
        spare = _FLOAT8_SPARE[block_m] if packed == 4 else _SPARE if count == steps else _LOOP_SPARE
        needed = -(-(words + block_n * block_m // 32 + spare) // 8) * 8
        if steps % count == 0 and needed <= bound:
            head = count
            break
    return head, min(needed, bound)
