"""The two ends of a fused step: a token's embedding as the residual stream, and the norm after the last layer."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from shoal_engine.kernels.triton_fused_launch import launch_options, trigger, wait
from shoal_engine.kernels.triton_fused_operands import SIXTEENTH, NormInput, Stream
from shoal_engine.kernels.triton_jit import jit, jit_once


@jit_once("token_ids")
def _embed_kernel(  # type: ignore[no-untyped-def]
    token_ids, table, gain, hidden, scaled, squares, width, tiles,
    block: tl.constexpr, tile_block: tl.constexpr, overlap: tl.constexpr,
):  # fmt: skip
    trigger(overlap)
    row, columns = tl.program_id(0), tl.arange(0, block)
    inside, at = columns < width, row * width + columns
    value = tl.load(table + tl.load(token_ids + row) * width + columns, mask=inside, other=0.0)
    tl.store(hidden + at, value, mask=inside)
    value = value.to(tl.float32)
    gains = tl.load(gain + columns, mask=inside, other=0.0).to(tl.float32)
    product = value * gains
    if scaled.dtype.element_ty == tl.float16:  # its largest number in place of larger ones
        product = tl.clamp(product * SIXTEENTH, -65504.0, 65504.0)
    tl.store(scaled + at, product.to(scaled.dtype.element_ty), mask=inside)
    tile = tl.arange(0, tile_block)
    tl.store(
        squares + row * tiles + tile, tl.where(tile == 0, tl.sum(value * value, 0), 0.0), mask=tile < tiles
    )


@jit
def _norm_kernel(x, gain, out, width, eps, block: tl.constexpr, overlap: tl.constexpr):  # type: ignore[no-untyped-def]
    columns = tl.arange(0, block)
    inside, at = columns < width, tl.program_id(0) * width + columns
    gains = tl.load(gain + columns, mask=inside, other=0.0).to(tl.float32)
    wait(overlap)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.math.rsqrt(tl.sum(value * value, 0) / width + eps)
    tl.store(out + at, (value * scale * gains).to(out.dtype.element_ty), mask=inside)


def embed(
    token_ids: Tensor, table: Tensor, gain: Tensor, stream: Stream, square_tiles: int, overlap: bool
) -> None:
    """Begin `stream` with the rows of table [V, H] for token_ids [R] int64; gain [H] of the first norm.

    square_tiles: partial sums of squares a row, as the layers after the first find them; all but one are zero.

    It starts after all work before it, which the kernels that follow may then rely on before their wait.
    """
    width = table.shape[1]
    _embed_kernel[(token_ids.shape[0],)](
        token_ids, table, gain, stream.hidden, stream.scaled, stream.squares, width, square_tiles,
        block=triton.next_power_of_2(width), tile_block=triton.next_power_of_2(square_tiles), overlap=overlap,
        num_warps=_warps(width),
    )  # fmt: skip


def normalise(x: Tensor, norm: NormInput, out: Tensor, overlap: bool) -> None:
    """out [R, H] = x / rms(x) * gain; directly after another kernel of the step."""
    width = x.shape[1]
    _norm_kernel[(x.shape[0],)](
        x, norm.gain, out, width, norm.eps, block=triton.next_power_of_2(width), overlap=overlap,
        num_warps=_warps(width), **launch_options(overlap),
    )  # fmt: skip


def _warps(width: int) -> int:
    return int(min(16, max(1, triton.next_power_of_2(width) // 512)))
