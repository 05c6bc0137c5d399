"""Attention of long prompts with nothing cached before them, by cuDNN: 627 TFLOP/s on an H200, our paged kernel 450 to 490.

cuDNN reads no pages and aligns the diagonal at the first token, so this serves only the first chunk of a prompt. Its keys
are the rows that `triton_rotary.py` has just made, its values those of QKV; out of a narrower cache, which rounds, both are
copied (about 3 % of the time). cuDNN takes 38 ms for the plan of every new shape and every new stride, so only multiples of
1024 tokens in rows that follow each other go this way; the tail of a chunk is left to `triton_prefill.py`. Not for windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention
from torch.nn import functional

from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadLayout
from shoal_engine.kernels.triton_jit import jit_once

SHAPE_TOKENS = 1024  # shapes are multiples of this
LEAST_TOKENS = 2048  # in one call; less does not earn the launches
TOKENS_PER_PROGRAM = 64


@dataclass(frozen=True, slots=True)
class DensePrefill:
    """The first `tokens` of each of `count` requests, attended in one call. Only the last of them has tokens beyond.

    first_row: of the first request, among all tokens of the step.
    """

    first_request: int
    count: int
    first_row: int
    tokens: int

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.first_row + self.count * self.tokens)

    def cut(self, x: Tensor) -> Tensor:
        """x [T, heads, D] of the whole step -> [count, heads, tokens, D], a view."""
        return x[self.rows].view(self.count, self.tokens, *x.shape[1:]).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class StepRows:
    """Of all tokens of a step: queries [T, num_heads, D] and, unless they are in their pages only, keys and values."""

    queries: Tensor
    keys: Tensor | None = None
    values: Tensor | None = None


def dense_prefills(
    batch: AttentionBatch, layout: HeadLayout, scale: AttentionScale, dtype: torch.dtype
) -> tuple[DensePrefill, ...]:
    """What of a step goes to cuDNN: nothing, if the batch does not say its chunks. Neighbours of one length go together."""
    if layout.head_dim not in (64, 128) or dtype not in (torch.bfloat16, torch.float16):
        return ()
    if batch.max_query_len < SHAPE_TOKENS or scale.softcap is not None or scale.sinks is not None:
        return ()
    runs: list[DensePrefill] = []
    row = batch.num_decodes
    for request, (new, context) in enumerate(batch.chunks, start=batch.num_decodes):
        tokens = new // SHAPE_TOKENS * SHAPE_TOKENS
        if new == context and tokens > 0 and (scale.window is None or scale.window >= new):
            last = runs[-1] if runs else None
            if last and last.tokens == tokens and last.rows.stop == row:
                runs[-1] = DensePrefill(last.first_request, last.count + 1, last.first_row, tokens)
            else:
                runs.append(DensePrefill(request, 1, row, tokens))
        row += new
    return tuple(run for run in runs if run.count * run.tokens >= LEAST_TOKENS)


def attend_fresh(
    rows: StepRows,
    layout: HeadLayout,
    batch: AttentionBatch,
    cache: Tensor,
    scale: AttentionScale,
    dense: DensePrefill,
) -> Tensor:
    """The output [count*tokens, num_heads*D] of `dense`, from the keys and values of `rows` or else of the pages."""
    queries = dense.cut(rows.queries)
    if rows.keys is None or rows.values is None:
        keys, values = _gathered(cache, batch, layout, dense, queries.dtype)
    else:
        keys, values = dense.cut(rows.keys), dense.cut(rows.values)
    out = _attended(queries, keys, values, scale.scale, layout.num_heads != layout.num_kv_heads)
    return out.transpose(1, 2).reshape(dense.count * dense.tokens, layout.q_size)


def _attended(queries: Tensor, keys: Tensor, values: Tensor, scale: float, is_grouped: bool) -> Tensor:
    """Causal, of [count, heads, tokens, D] in any strides. By cuDNN where it can, else by what torch chooses."""
    params = SDPAParams(queries, keys, values, None, 0.0, True, is_grouped)
    if queries.is_cuda and can_use_cudnn_attention(params):
        # By name: the context manager that puts it first in torch's choice costs the host another 24 us a call.
        attend = torch.ops.aten._scaled_dot_product_cudnn_attention
        out: Tensor = attend(queries, keys, values, None, False, 0.0, True, False, scale=scale)[0]
        return out
    return functional.scaled_dot_product_attention(
        queries, keys, values, is_causal=True, scale=scale, enable_gqa=is_grouped
    )


def rows_left(batch: AttentionBatch, dense: tuple[DensePrefill, ...]) -> Tensor:
    """[R] int32: the first row of each request that is not in `dense`; the end of the request when all are."""
    first = batch.query_start[:-1].clone()
    for one in dense:
        first[one.first_request : one.first_request + one.count] += one.tokens
    return first


@jit_once("tables", "table_stride")
def _gather_kernel(
    cache: tl.tensor,
    tables: tl.tensor,
    dense: tl.tensor,
    block_stride: tl.tensor,
    table_stride: tl.tensor,
    num_kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    block_tokens: tl.constexpr,
    token_block: tl.constexpr,
) -> None:
    """dense [2, requests, kv_heads, tokens, D] from the pages; a program copies some tokens of one head, keys or values."""
    side_head, request = tl.program_id(1), tl.program_id(2).to(tl.int64)
    token = tl.program_id(0) * token_block + tl.arange(0, token_block)
    dims = tl.arange(0, head_dim)
    page = tl.load(tables + request * table_stride + token // block_tokens).to(tl.int64)
    source = page * block_stride + (side_head * block_tokens + token % block_tokens) * head_dim
    rows = tl.load(cache + source[:, None] + dims[None, :])
    head = (
        side_head // num_kv_heads * tl.num_programs(2) + request
    ) * num_kv_heads + side_head % num_kv_heads
    target = (head * (tl.num_programs(0) * token_block) + token) * head_dim
    tl.store(dense + target[:, None] + dims[None, :], rows.to(dense.dtype.element_ty))


def _gathered(
    cache: Tensor, batch: AttentionBatch, layout: HeadLayout, dense: DensePrefill, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Keys and values [count, kv_heads, tokens, D] in `dtype`."""
    shape = (2, dense.count, layout.num_kv_heads, dense.tokens, layout.head_dim)
    both = torch.empty(shape, dtype=dtype, device=cache.device)
    grid = (dense.tokens // TOKENS_PER_PROGRAM, 2 * layout.num_kv_heads, dense.count)
    tables = batch.tables[dense.first_request :]
    _gather_kernel[grid](
        cache, tables, both, cache.stride(0), tables.stride(0), num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim, block_tokens=batch.block_tokens, token_block=TOKENS_PER_PROGRAM, num_warps=4,
    )  # fmt: skip
    return both[0], both[1]
