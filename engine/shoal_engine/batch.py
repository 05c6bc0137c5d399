"""Turn a plan into the tensors one step reads. Keeps each request's block table in a row that is only ever appended to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shoal_engine.kernels.interface import AttentionBatch
from shoal_engine.plan import Plan
from shoal_engine.request import Request


@dataclass(frozen=True, slots=True)
class Batch:
    """token_ids [T] int64; sample_rows [S] int64: rows of the hidden states that end in a sampled token, in plan order."""

    token_ids: Tensor
    attention: AttentionBatch
    sample_rows: Tensor


@dataclass(slots=True)
class _Row:
    index: int
    num_blocks: int


class BatchBuilder:
    """Block tables live in rows [max_num_seqs, max_blocks]; a step copies only what is new."""

    def __init__(self, max_num_seqs: int, max_blocks: int, block_tokens: int) -> None:
        self._tables = np.zeros((max_num_seqs, max_blocks), dtype=np.int32)
        self._free = list(range(max_num_seqs - 1, -1, -1))
        self._rows: dict[str, _Row] = {}
        self._block_tokens = block_tokens

    def build(self, plan: Plan) -> Batch:
        """Tensors for the chunks of `plan`, in its order (decodes come first)."""
        chunks = plan.chunks
        num_tokens = plan.num_tokens
        token_ids = np.empty(num_tokens, dtype=np.int64)
        positions = np.empty(num_tokens, dtype=np.int64)
        slots = np.empty(num_tokens, dtype=np.int64)
        query_start = np.zeros(len(chunks) + 1, dtype=np.int32)
        context_lens = np.empty(len(chunks), dtype=np.int32)
        rows = np.empty(len(chunks), dtype=np.int64)
        sample_rows = []
        at, block_tokens = 0, self._block_tokens
        for i, chunk in enumerate(chunks):
            start, count, request = chunk.start, chunk.count, chunk.request
            rows[i] = row = self._sync(request)
            if count == 1:
                token_ids[at] = request.token_ids[start]
                positions[at] = start
                slots[at] = request.block_ids[start // block_tokens] * block_tokens + start % block_tokens
            else:
                span = slice(at, at + count)
                token_ids[span] = request.token_ids[start : start + count]
                positions[span] = position = np.arange(start, start + count)
                slots[span] = (
                    self._tables[row, position // block_tokens].astype(np.int64) * block_tokens
                    + position % block_tokens
                )
            at += count
            query_start[i + 1] = at
            context_lens[i] = start + count
            if chunk.samples:
                sample_rows.append(at - 1)
        longest = int(context_lens.max())
        attention = AttentionBatch(
            query_start=torch.from_numpy(query_start),
            context_lens=torch.from_numpy(context_lens),
            tables=torch.from_numpy(self._tables[rows, : -(-longest // block_tokens)]),
            slots=torch.from_numpy(slots),
            positions=torch.from_numpy(positions),
            num_decodes=plan.num_decodes,
            max_query_len=max(chunk.count for chunk in chunks),
            max_context_len=longest,
            block_tokens=block_tokens,
        )
        return Batch(torch.from_numpy(token_ids), attention, torch.tensor(sample_rows, dtype=torch.int64))

    def release(self, request_ids: Iterable[str]) -> None:
        """Forget finished and preempted requests. Unknown ids are fine: a request may end before it ever ran."""
        for request_id in request_ids:
            row = self._rows.pop(request_id, None)
            if row is not None:
                self._free.append(row.index)

    def _sync(self, request: Request) -> int:
        """Copy the blocks that joined the request's table since its last step; returns its row."""
        row = self._rows.get(request.id)
        if row is None:
            row = self._rows[request.id] = _Row(self._free.pop(), 0)
        have, want = row.num_blocks, len(request.block_ids)
        if have != want:
            self._tables[row.index, have:want] = request.block_ids[have:]
            row.num_blocks = want
        return row.index
