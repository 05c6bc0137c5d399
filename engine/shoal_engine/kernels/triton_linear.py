"""y = x W^T for few rows on a GPU, bound by reading W once. Which kernel serves a shape is `gemm_table`'s decision.

Weights are bfloat16, or float8 e4m3 with a scale for each output channel, which are widened in registers: activations
keep their bits. Not for prefill, where cuBLAS does the work, and without bias.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from shoal_engine.kernels import cublaslt, triton_stream_k
from shoal_engine.kernels.gemm_table import MAX_ROWS, GemmChoice, Method, choose
from shoal_engine.kernels.gpu import on_gpu
from shoal_engine.kernels.triton_float8 import to_bfloat16
from shoal_engine.kernels.triton_jit import jit

PARTIAL_FLOATS = 4 * 2**20  # 16 MiB of float32 sums that the parts of a split row leave for the last of them
MAX_TILES = 4096
# Rows and columns of a float8 weight that share a factor, where it is scaled in blocks.
_BLOCK = tl.constexpr(128)
_MIN_DOT_ROWS = 8  # wgmma's narrowest second operand
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_WIDEN = tl.constexpr(
    _INTERPRETED
)  # the interpreter cannot multiply bfloat16; products of it are exact in float32


@jit
def _gemv(  # type: ignore[no-untyped-def]
    x, weight, scale, out, n, k,
    block_n: tl.constexpr, block_k: tl.constexpr, even: tl.constexpr, scaled: tl.constexpr,
):  # fmt: skip
    """out [N] = weight [N, K] x [K]; a program owns block_n rows and sums along K in its registers."""
    rows = tl.program_id(0) * block_n + tl.arange(0, block_n)
    there = rows < n
    weight_rows = weight + rows.to(tl.int64)[:, None] * k
    acc = tl.zeros((block_n, block_k), tl.float32)
    for start in range(0, k, block_k):
        inner = start + tl.arange(0, block_k)
        if even:
            w = tl.load(weight_rows + inner[None, :])
            v = tl.load(x + inner)
        else:
            w = tl.load(weight_rows + inner[None, :], mask=there[:, None] & (inner < k)[None, :], other=0.0)
            v = tl.load(x + inner, mask=inner < k, other=0.0)
        acc += w.to(tl.float32) * v.to(tl.float32)[None, :]
    total = tl.sum(acc, 1)
    if scaled:
        total *= tl.load(scale + rows, mask=there, other=0.0)
    tl.store(out + rows, total.to(out.dtype.element_ty), mask=there)


@jit
def _dot(  # type: ignore[no-untyped-def]
    x, weight, scale, x_scale, out, partial, arrivals, m, n, k, split_k,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    even: tl.constexpr, scaled: tl.constexpr, blocked: tl.constexpr, rounded: tl.constexpr, split: tl.constexpr,
):  # fmt: skip
    """out [M, N]: program (tile, part) multiplies block_n weight rows, a part of K, by all M rows of x.

    scaled: `scale` has a factor for each row; blocked: for each 128 x 128 of the weight, of which a tile is a part;
    rounded: x is float8 too, and `x_scale` has a factor for each of its rows.
    Of a split tile the last part to arrive adds what all left in `partial` [split_k, M, N], in their order: the same
    bits whoever is last. It also puts `arrivals` back to zero for the next call.
    """
    tile = tl.program_id(0)
    rows = tile * block_n + tl.arange(0, block_n)
    cols = tl.arange(0, block_m)
    there = (rows < n)[:, None] & (cols < m)[None, :]
    chunks = tl.cdiv(tl.cdiv(k, block_k), split_k)
    first = tl.program_id(1) * chunks * block_k
    last = tl.minimum(first + chunks * block_k, k)
    weight_rows = weight + rows.to(tl.int64)[:, None] * k
    acc = tl.zeros((block_n, block_m), tl.float32)
    for start in range(first, last, block_k):
        inner = start + tl.arange(0, block_k)
        if even:
            w = tl.load(weight_rows + inner[None, :])
            v = tl.load(x + cols[None, :] * k + inner[:, None], mask=(cols < m)[None, :], other=0.0)
        else:
            inside = inner < k
            w = tl.load(weight_rows + inner[None, :], mask=(rows < n)[:, None] & inside[None, :], other=0.0)
            v = tl.load(
                x + cols[None, :] * k + inner[:, None], mask=(cols < m)[None, :] & inside[:, None], other=0.0
            )
        into = tl.zeros((block_n, block_m), tl.float32) if blocked else acc
        if _WIDEN:
            into = tl.dot(w.to(tl.float32), v.to(tl.float32), into, input_precision="ieee")
        else:
            into = tl.dot(to_bfloat16(w) if (scaled or blocked) and not rounded else w, v, into)
        if blocked:
            acc += into * tl.load(scale + tile * block_n // _BLOCK * tl.cdiv(k, _BLOCK) + start // _BLOCK)
        else:
            acc = into
    place = cols.to(tl.int64)[None, :] * n + rows[:, None]
    if split:
        step = n.to(tl.int64) * m  # m may be the constant 1
        tl.store(partial + tl.program_id(1) * step + place, acc, mask=there)
        tl.debug_barrier()  # every thread's sums are written before one thread says so
        if tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == split_k - 1:
            acc = tl.zeros((block_n, block_m), tl.float32)
            for part in range(0, split_k):
                acc += tl.load(partial + part * step + place, mask=there, other=0.0, cache_modifier=".cg")
            tl.store(arrivals + tile, 0)
            acc = _scaled(acc, scale, x_scale, rows, cols, m, n, scaled, rounded)
            tl.store(out + place, acc.to(out.dtype.element_ty), mask=there)
    else:
        acc = _scaled(acc, scale, x_scale, rows, cols, m, n, scaled, rounded)
        tl.store(out + place, acc.to(out.dtype.element_ty), mask=there)


@jit
def _scaled(  # type: ignore[no-untyped-def]
    acc, scale, x_scale, rows, cols, m, n, scaled: tl.constexpr, rounded: tl.constexpr
):
    if scaled:
        acc *= tl.load(scale + rows, mask=rows < n, other=0.0)[:, None]
    if rounded:
        acc *= tl.load(x_scale + cols, mask=cols < m, other=0.0)[None, :]
    return acc


def linear(x: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """x [M, K] -> x W^T [M, N], of x's dtype. weight [N, K] contiguous: of that dtype, or float8_e4m3fn.

    scale float32, with float8 only. [N]: row n of W is weight[n] * scale[n]; [ceil(N / 128), ceil(K / 128)]: a factor for
    each block, by DOT only, in tiles that divide a block. Before a CUDA graph records a call, make
    the same call once outside it: that compiles the kernel and allocates what parts of a row share.
    """
    choice = choose(x.shape[0], weight.shape[0], weight.shape[1])
    if not _serves(choice.method, x, weight):
        return _by_library(x, weight, scale, choice.method)
    try:
        return launch(x, weight, scale, choice)
    except cublaslt.NoSuchAlgorithm:
        return functional.linear(x, weight)


def launch(x: Tensor, weight: Tensor, scale: Tensor | None, choice: GemmChoice) -> Tensor:
    """`linear` by one named kernel; for tuning and tests. GEMV takes one row, DOT at most MAX_ROWS."""
    if choice.method.streams or choice.method is Method.PROPOSAL:
        if scale is not None:
            raise ValueError(f"{choice.method.name} has no scales")
        if choice.method is Method.PROPOSAL:
            return cublaslt.product(x, weight, choice.split_k, choice.block_m)
        return triton_stream_k.stream(x, weight, choice)
    x = x.contiguous()
    _check(x, weight, scale, choice)
    (m, k), n = x.shape, weight.shape[0]
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if choice.method is Method.DOT:
        return _launch_dot(x, weight, scale, None, out, choice)
    even = n % choice.block_n == 0 and k % choice.block_k == 0
    _gemv[(triton.cdiv(n, choice.block_n),)](
        x, weight, x if scale is None else scale, out, n, k, choice.block_n, choice.block_k, even,
        scale is not None, num_warps=choice.warps, num_stages=choice.stages,
    )  # fmt: skip
    return out


def launch_rounded(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype, choice: GemmChoice
) -> Tensor:
    """x [M, K] float8_e4m3fn with x_scale [M, 1] float32 by a weight with a scale for each channel, by DOT, in float8
    -> [M, N] of `dtype`."""
    _check(x, weight, scale, choice)
    if choice.method is not Method.DOT or scale.dim() != 1:
        raise ValueError(f"a rounded input needs DOT and a scale for each channel, got {choice.method.name}")
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=dtype, device=x.device)
    return _launch_dot(x, weight, scale, x_scale, out, choice)


def _launch_dot(
    x: Tensor, weight: Tensor, scale: Tensor | None, x_scale: Tensor | None, out: Tensor, choice: GemmChoice
) -> Tensor:
    (m, k), n = x.shape, weight.shape[0]
    grid_n = triton.cdiv(n, choice.block_n)
    even = n % choice.block_n == 0 and k % choice.block_k == 0
    blocked = scale is not None and scale.dim() == 2
    split = choice.split_k if choice.split_k * m * n <= PARTIAL_FLOATS and grid_n <= MAX_TILES else 1
    partial, arrivals = _shared(x.device) if split > 1 else (x, x)
    _dot[(grid_n, split)](
        x, weight, x if scale is None else scale, x if x_scale is None else x_scale, out, partial, arrivals,
        m, n, k, split, padded_rows(m), choice.block_n, choice.block_k, even, scale is not None and not blocked,
        blocked, x_scale is not None, split > 1, num_warps=choice.warps, num_stages=choice.stages,
    )  # fmt: skip
    return out


def padded_rows(rows: int) -> int:
    """The height of the tile in which DOT holds all rows."""
    return int(max(_MIN_DOT_ROWS, triton.next_power_of_2(rows)))


def _serves(method: Method, x: Tensor, weight: Tensor) -> bool:
    """Whether a kernel of ours can do what the table, which knows nothing of dtypes and cards, asks."""
    if method in (Method.CUBLAS, Method.CUBLASLT) or not (on_gpu(x) or _INTERPRETED):
        return False
    if method is Method.PROPOSAL:
        return x.is_cuda and cublaslt.serves(x, weight)
    return not method.streams or triton_stream_k.serves(x, weight)


def _by_library(x: Tensor, weight: Tensor, scale: Tensor | None, method: Method) -> Tensor:
    if scale is not None:
        # Reads the weight twice more than a float8 product would; for prompts, until activations are quantised too.
        weight = (weight.to(torch.float32) * scale[:, None]).to(x.dtype)
    if method is not Method.CUBLASLT or not x.is_cuda:
        return functional.linear(x, weight)
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library("cublaslt")
    try:
        return functional.linear(x, weight)
    finally:
        torch.backends.cuda.preferred_blas_library(before)


@functools.cache
def _shared(device: torch.device) -> tuple[Any, Any]:
    """One per device and never freed, because recorded graphs hold its address. Calls on two streams must not overlap."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("call linear once with this shape before a CUDA graph records it")
    partial = torch.empty((PARTIAL_FLOATS,), dtype=torch.float32, device=device)
    return partial, torch.zeros(MAX_TILES, dtype=torch.int32, device=device)


def _check(x: Tensor, weight: Tensor, scale: Tensor | None, choice: GemmChoice) -> None:
    most = 1 if choice.method is Method.GEMV else MAX_ROWS
    if not 1 <= x.shape[0] <= most:
        raise ValueError(f"{choice.method.name} takes 1 to {most} rows, got {x.shape[0]}")
    if x.shape[1] != weight.shape[1] or not weight.is_contiguous():
        raise ValueError(f"expected a contiguous weight [N, {x.shape[1]}], got {list(weight.shape)}")
    if (weight.dtype == torch.float8_e4m3fn) != (scale is not None):
        raise ValueError("a float8 weight comes with its scales, and only it")
    if scale is not None and scale.dim() == 2:
        tile = (choice.block_n, choice.block_k)
        if choice.method is not Method.DOT or any(_BLOCK.value % side for side in tile):
            raise ValueError(
                f"a weight scaled in blocks needs DOT in tiles that divide {_BLOCK.value}, got {choice}"
            )
