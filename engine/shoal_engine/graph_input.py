"""What every recorded step reads, at fixed addresses, and how a host's batch gets there. Records nothing.

Padding rows see no token (context length 0) and write none (slot -1).
"""

from __future__ import annotations

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from shoal_engine.batch import HostBatch
from shoal_engine.kernels.interface import AttentionBatch
from shoal_engine.kernels.triton_jit import jit
from shoal_engine.plain_draws import FIELDS, PlainDraws
from shoal_engine.staging import Staging

_COPY_BLOCK = 256  # table entries of one request copied at a time


class GraphInput:
    """For steps of up to max_tokens tokens and max_requests requests, which hold up to max_blocks blocks each."""

    def __init__(
        self, max_tokens: int, max_requests: int, max_blocks: int, block_tokens: int, sampled: Tensor
    ) -> None:
        """sampled [max_num_seqs] int64: what the step before has sampled, read by token ids below 0."""
        device = sampled.device
        self._sampled = sampled
        self._block_tokens = block_tokens
        self._staging = Staging(
            {
                "columns": (np.int32, 4),  # of the tables, as they are sent
                **{name: (kind, max_requests) for name, kind in FIELDS.items()},
                "token_ids": (np.int64, max_tokens),
                "positions": (np.int64, max_tokens),
                "slots": (np.int64, max_tokens),
                "query_start": (np.int32, max_requests + 1),
                "context_lens": (np.int32, max_requests),
                "tables": (np.int32, max_requests * max_blocks),
            },
            device,
        )
        self.asked: dict[str, Tensor] = {name: self._staging.device[name] for name in FIELDS}
        self._token_ids = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        self._tables = torch.zeros((max_requests, max_blocks), dtype=torch.int32, device=device)

    def send(self, host: HostBatch, tokens: int, requests: int, asked: PlainDraws | None = None) -> None:
        """Write `host`, padded to this many tokens and requests, and what its rows ask for where the step draws."""
        arrays = self._staging.begin()
        if asked is not None:
            asked.write(arrays, requests)
        count, own = host.num_tokens, len(host.context_lens)
        arrays["columns"][0] = columns = host.tables.shape[1]
        for name, padding in (("token_ids", 0), ("positions", 0), ("slots", -1)):
            arrays[name][:count] = getattr(host, name)
            arrays[name][count:tokens] = padding
        arrays["query_start"][: own + 1] = host.query_start
        arrays["query_start"][own + 1 : requests + 1] = count
        arrays["context_lens"][:own] = host.context_lens
        arrays["context_lens"][own:requests] = 0
        arrays["tables"][: own * columns].reshape(own, columns)[:] = host.tables
        self._staging.send("tables", own * columns)

    def blank(self, tokens: int, requests: int) -> None:
        """Write padding only, for a run that compiles or records."""
        nothing = np.zeros(0, dtype=np.int64)
        empty = np.zeros(0, dtype=np.int32)
        host = HostBatch(
            token_ids=nothing,
            positions=nothing,
            slots=nothing,
            query_start=np.zeros(1, dtype=np.int32),
            context_lens=empty,
            tables=empty.reshape(0, 0),
            sample_rows=nothing,
            num_decodes=0,
            max_query_len=0,
            max_context_len=0,
            chunks=(),
            num_pending=0,
            block_tokens=self._block_tokens,
        )
        self.send(host, tokens, requests)

    def unpack(
        self, tokens: int, requests: int, num_decodes: int, shares_prefixes: bool
    ) -> tuple[Tensor, AttentionBatch]:
        """Token ids [tokens] and the batch, for a step that is being recorded; later steps read what was sent last."""
        there = self._staging.device
        _unpack_kernel[(tokens,)](
            there["columns"], there["token_ids"], self._sampled, there["tables"], self._token_ids, self._tables,
            self._tables.stride(0), requests, block=_COPY_BLOCK, num_warps=1,
        )  # fmt: skip
        batch = AttentionBatch(
            query_start=there["query_start"][: requests + 1],
            context_lens=there["context_lens"][:requests],
            tables=self._tables[:requests],
            slots=there["slots"][:tokens],
            positions=there["positions"][:tokens],
            num_decodes=num_decodes,
            max_query_len=1 if num_decodes == requests else tokens,
            max_context_len=self._tables.shape[1] * self._block_tokens,
            block_tokens=self._block_tokens,
            shares_prefixes=shares_prefixes,
        )
        return self._token_ids[:tokens], batch


@jit
def _unpack_kernel(  # type: ignore[no-untyped-def]
    header, token_ids, sampled, packed_tables, out_ids, tables, table_stride, requests, block: tl.constexpr
):  # fmt: skip
    """Program i: token id i, taken from `sampled` where it is below 0, and the blocks of request i if there is one.

    header[0]: columns of packed_tables [R, columns]; rows beyond the last request are copied and never used.
    """
    row = tl.program_id(0)
    token = tl.load(token_ids + row)
    if token < 0:
        token = tl.load(sampled - 1 - token)
    tl.store(out_ids + row, token)
    if row < requests:
        columns = tl.load(header)
        for start in range(0, columns, block):
            column = start + tl.arange(0, block)
            there = column < columns
            blocks = tl.load(packed_tables + row * columns + column, mask=there, other=0)
            tl.store(tables + row.to(tl.int64) * table_stride + column, blocks, mask=there)
