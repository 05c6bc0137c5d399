"""CUDA graphs of decode steps, from token ids to the last hidden states, one per batch size that is a bucket.

A graph reads its input from one fixed buffer, so that a step costs the host one copy and one launch whatever the model.
Padding rows see no token (context length 0) and write none (slot -1). Not for prompts.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from shoal_engine.batch import HostBatch
from shoal_engine.kernels.cuda import CudaKernels
from shoal_engine.kernels.interface import AttentionBatch
from shoal_engine.kernels.triton_jit import jit
from shoal_engine.models.llama import Llama
from shoal_engine.upload import Upload, layout

log = logging.getLogger(__name__)

_COPY_BLOCK = 256  # table entries of one request copied at a time


def bucket_of(rows: int) -> int:
    """The batch size whose graph serves `rows` decodes: at most 12.5 % or 7 rows of padding."""
    if rows <= 8:
        return 1 << (rows - 1).bit_length()
    step = 8 if rows <= 256 else 32 if rows <= 512 else 64
    return -(-rows // step) * step


@dataclass(frozen=True, slots=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    hidden: Tensor


class DecodeGraphs:
    """Graphs share one memory pool and one input buffer: steps run one after another on one stream."""

    def __init__(
        self,
        model: Llama,
        kernels: CudaKernels,
        cache: Tensor,
        sampled: Tensor,
        max_blocks: int,
        block_tokens: int,
    ) -> None:
        """sampled [max_num_seqs] int64: what the step before has sampled, read by token ids below 0."""
        self._model = model
        self._kernels = kernels
        self._cache = cache
        self._sampled = sampled
        self._block_tokens = block_tokens
        device, rows = cache.device, bucket_of(len(sampled))
        self._input = torch.zeros(_input_layout(rows, rows * max_blocks)[1], dtype=torch.uint8, device=device)
        self._tables = torch.zeros((rows, max_blocks), dtype=torch.int32, device=device)
        self._token_ids = torch.zeros(rows, dtype=torch.int64, device=device)
        self._query_start = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._graphs: dict[int, _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def prepare(self, rows: int) -> None:
        """Record the graph of this many rows, if it is not there. Takes tens of milliseconds, once kernels are compiled."""
        bucket = bucket_of(rows)
        if bucket not in self._graphs:
            self._graphs[bucket] = self._record(bucket)

    def replay(self, host: HostBatch, upload: Upload) -> Tensor:
        """Hidden states [R, H] of R decodes; they hold until the next replay."""
        rows, bucket = host.num_tokens, bucket_of(host.num_tokens)
        self.prepare(rows)
        padding = bucket - rows
        upload.send(
            (
                np.array([host.tables.shape[1], 0, 0, 0], dtype=np.int32),
                np.pad(host.token_ids, (0, padding)),
                np.pad(host.positions, (0, padding)),
                np.pad(host.slots, (0, padding), constant_values=-1),
                np.pad(host.context_lens, (0, padding)),
                host.tables,
            ),
            self._input,
        )
        one = self._graphs[bucket]
        one.graph.replay()
        return one.hidden[:rows]

    def _record(self, rows: int) -> _Graph:
        self._input.zero_()  # no request, no table
        self._step(rows)  # compiles kernels and allocates their workspaces outside the graph
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            hidden = self._step(rows)
        log.debug("recorded the decode graph of %d rows", rows)
        return _Graph(graph, hidden)

    def _step(self, rows: int) -> Tensor:
        offsets, _ = _input_layout(rows, 0)
        header, token_ids, positions, slots, context_lens, tables = offsets
        _expand_kernel[(rows,)](
            self._at(header, 4, torch.int32), self._at(token_ids, rows, torch.int64), self._sampled,
            self._input[tables:].view(torch.int32), self._token_ids, self._tables, self._tables.stride(0),
            block=_COPY_BLOCK, num_warps=1,
        )  # fmt: skip
        batch = AttentionBatch(
            query_start=self._query_start[: rows + 1],
            context_lens=self._at(context_lens, rows, torch.int32),
            tables=self._tables[:rows],
            slots=self._at(slots, rows, torch.int64),
            positions=self._at(positions, rows, torch.int64),
            num_decodes=rows,
            max_query_len=1,
            max_context_len=self._tables.shape[1] * self._block_tokens,
            block_tokens=self._block_tokens,
        )
        self._kernels.begin_step(batch)
        return self._model(self._token_ids[:rows], batch, self._cache)

    def _at(self, offset: int, count: int, dtype: torch.dtype) -> Tensor:
        return self._input[offset : offset + count * dtype.itemsize].view(dtype)


def _input_layout(rows: int, table_entries: int) -> tuple[list[int], int]:
    """Offsets of header, token ids, positions, slots, context lengths and tables in bytes, and the whole size."""
    return layout([16, 8 * rows, 8 * rows, 8 * rows, 4 * rows, 4 * table_entries])


@jit
def _expand_kernel(  # type: ignore[no-untyped-def]
    header, token_ids, sampled, packed_tables, out_ids, tables, table_stride, block: tl.constexpr
):  # fmt: skip
    """Program r: the token id of row r, taken from `sampled` where it is below 0, and the row's blocks.

    header[0]: columns of packed_tables [R, columns]; rows beyond the last request are read and never used.
    """
    row = tl.program_id(0)
    token = tl.load(token_ids + row)
    if token < 0:
        token = tl.load(sampled - 1 - token)
    tl.store(out_ids + row, token)
    columns = tl.load(header)
    for start in range(0, columns, block):
        column = start + tl.arange(0, block)
        there = column < columns
        blocks = tl.load(packed_tables + row * columns + column, mask=there, other=0)
        tl.store(tables + row.to(tl.int64) * table_stride + column, blocks, mask=there)
