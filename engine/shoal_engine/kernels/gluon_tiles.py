"""Tokens of the paged cache as tensor cores want them, from memory to registers: Gluon, for `gluon_decode.py`.

A warp takes 16 tokens at a time. Neither keys nor values pass through shared memory: a thread loads 16 bytes of a token
where the product wants its numbers, or where it wants them in an order of the dims that `in_order` undoes at the end.
"""

from __future__ import annotations

import functools

from triton.experimental.gluon import language as gl

from shoal_engine.kernels.gluon_jit import jit
from shoal_engine.kernels.gluon_softmax import HEADS
from shoal_engine.kernels.gluon_words import numbers

TOKENS = gl.constexpr(16)  # of a warp at a time


@jit
def _places(  # type: ignore[no-untyped-def]
    table, first, tokens, from_token, to_token, block_words, row_words: gl.constexpr, block_tokens: gl.constexpr,
):  # fmt: skip
    """Where tokens [W, T] lie in the cache, and which of them are visible. first [W]: of each warp's."""
    visible = (tokens >= from_token) & (tokens < to_token)
    if block_tokens % TOKENS == 0:
        page = gl.load(table + first // block_tokens, mask=first < to_token, other=0).to(gl.int64)
        return page[:, None] * block_words + (tokens % block_tokens) * row_words, visible
    else:
        page = gl.load(table + tokens // block_tokens, mask=visible, other=0).to(gl.int64)
        return page * block_words + (tokens % block_tokens) * row_words, visible


@jit
def load_tokens(  # type: ignore[no-untyped-def]
    side, table, begin, from_token, to_token, block_words, row_words: gl.constexpr, block_tokens: gl.constexpr,
    warps: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """Keys or values of the tokens from `begin`, in words [W, T, row_words], 0 outside from_token..to_token."""
    w = gl.arange(0, warps, layout=gl.SliceLayout(1, gl.SliceLayout(2, layout)))
    t = gl.arange(0, TOKENS, layout=gl.SliceLayout(0, gl.SliceLayout(2, layout)))
    word = gl.arange(0, row_words, layout=gl.SliceLayout(0, gl.SliceLayout(1, layout)))
    first = begin + w * TOKENS
    tokens = first[:, None] + t[None, :]
    place, visible = _places(table, first, tokens, from_token, to_token, block_words, row_words, block_tokens)
    return gl.load(side + place[:, :, None] + word[None, None, :], mask=visible[:, :, None], other=0)


@jit
def turned(words, packed: gl.constexpr, piece: gl.constexpr, dtype: gl.constexpr, layout: gl.constexpr):  # type: ignore[no-untyped-def]
    """Words of values [W, T, D] -> [W, D', T] as first operand, without a thread giving anything away.

    A thread has loaded `piece` dims of a token, and its rows of the operand are 8 apart: D' counts dims as (c, i, g)
    where D counts them as (c, g, i), with i one of a piece.
    """
    warps: gl.constexpr = words.shape[0]
    head_dim: gl.constexpr = words.shape[2] * packed
    value = numbers(words, packed, dtype)
    value = gl.reshape(value, (warps, TOKENS, head_dim // (8 * piece), 8, piece))
    value = gl.reshape(gl.permute(value, (0, 2, 4, 3, 1)), (warps, head_dim, TOKENS))
    return gl.convert_layout(value, layout, assert_trivial=True)


@jit
def in_order(sums, head_dim: gl.constexpr, warps: gl.constexpr, piece: gl.constexpr, layout: gl.constexpr):  # type: ignore[no-untyped-def]
    """[W, D', 8] of the product by `turned` values -> [W, 8, D]."""
    sums = gl.reshape(sums, (warps, head_dim // (8 * piece), piece, 8, HEADS))
    return gl.convert_layout(gl.reshape(gl.permute(sums, (0, 4, 1, 3, 2)), (warps, HEADS, head_dim)), layout)


@functools.cache
def value_bases(row_words: int, piece: int, warps: int) -> tuple[tuple[tuple[int, int, int], ...], ...]:
    """of_thread, of_lanes, of_warps: how values [W, T, row_words] lie in registers, as a `DistributedLinearLayout` has it.

    What a thread holds of the values is what it holds of `turned` ones: tensor cores want of thread (g, i), which is
    lane 4 g + i, the tokens 2i, 2i + 1, 2i + 8 and 2i + 9.
    """
    words = [1 << bit for bit in range(row_words.bit_length() - 1)]
    of_thread = [(0, 0, word) for word in words if word < piece or word >= 8 * piece]
    of_lanes = [(0, 0, word) for word in words if piece <= word < 8 * piece]
    of_warps = tuple((1 << bit, 0, 0) for bit in range(warps.bit_length() - 1))
    return (*of_thread, (0, 1, 0), (0, 8, 0)), ((0, 2, 0), (0, 4, 0), *of_lanes), of_warps
