"""The walk of a few rows of queries over tiles of cached tokens, and the logits that both attentions have in common.

Logits are in units of log 2, since exp2 is what the device has. A float8 cache is widened in registers to float16, which
holds every number of it. The walk is decode's, of which a program has few rows; prefill has its own.
"""

from __future__ import annotations

import triton.language as tl

from shoal_engine.kernels.interface import AttentionScale
from shoal_engine.kernels.triton_jit import jit

LOG2_E = 1.4426950408889634


def log2_factors(scale: AttentionScale) -> tuple[float, float]:
    """What `logits` multiplies a product with, and the cap of the result (0: none)."""
    if scale.softcap is None:
        return scale.scale * LOG2_E, 0.0
    return 2 * LOG2_E * scale.scale / scale.softcap, scale.softcap * LOG2_E


@jit
def capped(products: tl.tensor, scale_log2: tl.tensor, cap_log2: tl.tensor) -> tl.tensor:
    """cap * tanh(x): tanh by exp2, which overflows to the right limit."""
    return cap_log2 * (1.0 - 2.0 / (1.0 + tl.exp2(products * scale_log2)))


@jit
def sink_logits(sinks: tl.tensor, heads: tl.tensor, real: tl.tensor) -> tl.tensor:
    """In units of log 2; -inf where not `real`."""
    logits = tl.load(sinks + heads, mask=real, other=float("-inf"))
    return logits.to(tl.float32) * 1.4426950408889634


@jit
def walk_tiles(
    state: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    table: tl.tensor,
    block_stride: tl.tensor,
    side_stride: tl.constexpr,
    from_token: tl.tensor,
    to_token: tl.tensor,
    first_visible: tl.tensor,
    scale_log2: tl.tensor,
    cap_log2: tl.tensor,
    has_cap: tl.constexpr,
    head_dim: tl.constexpr,
    block_tokens: tl.constexpr,
    dim_block: tl.constexpr,
    tile_tokens: tl.constexpr,
    precision: tl.constexpr,
) -> tl.tensor:
    """Carry (sums [rows, D], maxima [rows], weights [rows]) over tokens from_token..to_token of one request."""
    sums, top, weight = state
    dims = tl.arange(0, dim_block)
    for begin in range(from_token, to_token, tile_tokens):
        token = begin + tl.arange(0, tile_tokens)
        visible = (token < to_token) & (token >= first_visible)
        if block_tokens % tile_tokens == 0:
            page = tl.load(table + begin // block_tokens).to(tl.int64)
        else:
            page = tl.load(table + token // block_tokens, mask=visible, other=0).to(tl.int64)
        at = page * block_stride + (token % block_tokens) * head_dim
        kept = visible[:, None] & (dims[None, :] < head_dim)
        key = tl.load(keys + at[:, None] + dims[None, :], mask=kept, other=0.0).to(queries.dtype)
        value = tl.load(keys + side_stride + at[:, None] + dims[None, :], mask=kept, other=0.0)
        value = value.to(queries.dtype)
        scores = tl.dot(queries, tl.trans(key), input_precision=precision)
        scores = capped(scores, scale_log2, cap_log2) if has_cap else scores * scale_log2
        scores = tl.where(visible[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)  # nothing visible yet
        shares = tl.exp2(scores - shift[:, None])
        fade = tl.exp2(top - shift)
        weight = weight * fade + tl.sum(shares, 1)
        sums = sums * fade[:, None] + tl.dot(shares.to(value.dtype), value, input_precision=precision)
        top = new_top
    return sums, top, weight
