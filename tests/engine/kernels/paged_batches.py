"""Batches on shuffled blocks for kernel tests, and caches in which everything that no request owns is NaN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from shoal_engine.kernels.interface import AttentionBatch, HeadLayout


def poison_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that torch leaves uninitialised is NaN, so that an element nobody wrote is seen."""
    empty, empty_like, new_empty = torch.empty, torch.empty_like, Tensor.new_empty

    def poisoned(tensor: Tensor) -> Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-7)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: poisoned(new_empty(*a, **k)))


def attention_batch(
    queries: Sequence[int], contexts: Sequence[int], block_tokens: int
) -> tuple[AttentionBatch, int]:
    """Requests with `queries` new tokens of `contexts`, and the number of blocks. Block 0 is nobody's.

    A context of 0 with one query is a padding row: position 0 and slot -1.
    """
    blocks = [-(-context // block_tokens) for context in contexts]
    order = torch.randperm(sum(blocks)) + 1
    tables = torch.zeros(len(contexts), max(1, *blocks), dtype=torch.int32)
    slots, positions, used = [], [], 0
    for row, (new, context, count) in enumerate(zip(queries, contexts, blocks, strict=True)):
        tables[row, :count] = order[used : used + count].int()
        used += count
        if context == 0:
            positions.append(torch.zeros(new, dtype=torch.int64))
            slots.append(torch.full((new,), -1))
            continue
        position = torch.arange(context - new, context)
        positions.append(position)
        slots.append(tables[row, position // block_tokens].long() * block_tokens + position % block_tokens)
    leading = 0
    while leading < len(queries) and queries[leading] == 1:
        leading += 1
    batch = AttentionBatch(
        query_start=torch.tensor([0, *queries]).cumsum(0).int(),
        context_lens=torch.tensor(contexts, dtype=torch.int32),
        tables=tables,
        slots=torch.cat(slots),
        positions=torch.cat(positions),
        num_decodes=leading,
        max_query_len=max(queries),
        max_context_len=max(contexts),
        block_tokens=block_tokens,
    )
    return batch, sum(blocks) + 1


def filled_cache(batch: AttentionBatch, num_blocks: int, layout: HeadLayout, dtype: torch.dtype) -> Tensor:
    """[num_blocks, 2, kv_heads, block_tokens, D]: random where a request has a token, NaN elsewhere."""
    block_tokens = batch.block_tokens
    shape = (num_blocks, 2, layout.num_kv_heads, block_tokens, layout.head_dim)
    cache = torch.full(shape, float("nan"), dtype=torch.float16 if dtype.itemsize == 1 else dtype)
    for table, length in zip(batch.tables, batch.context_lens.tolist(), strict=True):
        position = torch.arange(length)
        keys_and_values = torch.randn(length, 2, layout.num_kv_heads, layout.head_dim).to(cache.dtype)
        cache[table[position // block_tokens].long(), :, :, position % block_tokens] = keys_and_values
    return cache.to(dtype)


def without_padding(batch: AttentionBatch) -> AttentionBatch:
    """The requests before the first padding row, for a twin that divides by the weights of no tokens."""
    real = int((batch.context_lens > 0).sum())
    return replace(
        batch,
        query_start=batch.query_start[: real + 1],
        context_lens=batch.context_lens[:real],
        tables=batch.tables[:real],
        num_decodes=min(real, batch.num_decodes),
    )
