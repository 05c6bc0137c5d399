"""Attention of long prompts with nothing cached before them, by cuDNN: 627 TFLOP/s on an H200, our paged kernel 450 to 490.

cuDNN reads no pages and aligns the diagonal at the first token, so this serves only the first chunk of a prompt, whose
keys and values are copied out of their pages first (about 3 % of the time). It builds a plan for every shape, so only
multiples of 1024 tokens go this way; the tail of a chunk is left to `triton_prefill.py`. Not for windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadLayout
from shoal_engine.kernels.triton_jit import jit_once

SHAPE_TOKENS = 1024  # shapes are multiples of this
LEAST_TOKENS = 2048  # in one call; less does not earn the copy and the launches
TOKENS_PER_PROGRAM = 64
BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True, slots=True)
class DensePrefill:
    """Requests first_request : first_request+count, of chunk_tokens each, whose first `tokens` are attended in one call.

    first_row: of the first request, among all tokens of the step.
    """

    first_request: int
    count: int
    first_row: int
    chunk_tokens: int
    tokens: int

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.first_row + self.count * self.chunk_tokens)


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
            if last and last.chunk_tokens == new and last.rows.stop == row:
                runs[-1] = DensePrefill(last.first_request, last.count + 1, last.first_row, new, tokens)
            else:
                runs.append(DensePrefill(request, 1, row, new, tokens))
        row += new
    return tuple(run for run in runs if run.count * run.tokens >= LEAST_TOKENS)


def attend_fresh(
    q: Tensor,
    layout: HeadLayout,
    batch: AttentionBatch,
    cache: Tensor,
    scale: AttentionScale,
    dense: DensePrefill,
) -> Tensor:
    """The output [count, tokens, num_heads*D] of `dense`; q [T, num_heads, D] are the queries of the whole step."""
    count, tokens = dense.count, dense.tokens
    keys, values = _gathered(cache, batch, layout, dense, q.dtype)
    queries = q[dense.rows].view(count, dense.chunk_tokens, layout.num_heads, layout.head_dim)[:, :tokens]
    with sdpa_kernel(BACKENDS, set_priority=True):
        out = functional.scaled_dot_product_attention(
            queries.transpose(1, 2),
            keys,
            values,
            is_causal=True,
            scale=scale.scale,
            enable_gqa=layout.num_heads != layout.num_kv_heads,
        )
    return out.transpose(1, 2).reshape(count, tokens, layout.q_size)


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
