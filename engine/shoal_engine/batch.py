"""Turn a plan into the numbers one step reads, on the host. Keeps each request's block table in a row that only grows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal_engine.plan import Plan
from shoal_engine.request import Request


@dataclass(frozen=True, slots=True)
class HostBatch:
    """The fields of `AttentionBatch`, and what stands before and after the model.

    token_ids [T] int64: -1 - i stands for the token that row i of the step before has sampled, which only the device knows.
    sample_rows [S] int64: rows of the hidden states that end in a sampled token, in plan order.
    """

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    slots: NDArray[np.int64]
    query_start: NDArray[np.int32]
    context_lens: NDArray[np.int32]
    tables: NDArray[np.int32]
    sample_rows: NDArray[np.int64]
    num_decodes: int
    max_query_len: int
    max_context_len: int
    chunks: tuple[tuple[int, int], ...]
    num_pending: int  # of the token ids
    block_tokens: int

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def only_decodes(self) -> bool:
        return self.num_decodes == len(self.context_lens)


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

    def build(self, plan: Plan, sampled_rows: Mapping[str, int]) -> HostBatch:
        """The chunks of `plan`, in its order (decodes come first). sampled_rows: row of each request in the step before."""
        chunks = plan.chunks
        num_tokens = plan.num_tokens
        token_ids = np.empty(num_tokens, dtype=np.int64)
        positions = np.empty(num_tokens, dtype=np.int64)
        slots = np.empty(num_tokens, dtype=np.int64)
        query_start = np.zeros(len(chunks) + 1, dtype=np.int32)
        context_lens = np.empty(len(chunks), dtype=np.int32)
        rows = np.empty(len(chunks), dtype=np.int64)
        sample_rows = []
        at, num_pending, block_tokens = 0, 0, self._block_tokens
        for i, chunk in enumerate(chunks):
            start, count, request = chunk.start, chunk.count, chunk.request
            rows[i] = row = self._sync(request)
            if count == 1:
                if start < len(request.token_ids):
                    token_ids[at] = request.token_ids[start]
                else:
                    token_ids[at] = -1 - sampled_rows[request.id]
                    num_pending += 1
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
        return HostBatch(
            token_ids=token_ids,
            positions=positions,
            slots=slots,
            query_start=query_start,
            context_lens=context_lens,
            tables=self._tables[rows, : -(-longest // block_tokens)],
            sample_rows=np.array(sample_rows, dtype=np.int64),
            num_decodes=plan.num_decodes,
            max_query_len=max(chunk.count for chunk in chunks),
            max_context_len=longest,
            chunks=tuple((chunk.count, chunk.start + chunk.count) for chunk in chunks[plan.num_decodes :]),
            num_pending=num_pending,
            block_tokens=block_tokens,
        )

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
