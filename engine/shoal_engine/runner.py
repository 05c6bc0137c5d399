"""A model and its KV cache on one device: runs the chunks of a plan. Knows nothing of queues, sampling or sockets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal_engine.batch import BatchBuilder, HostBatch
from shoal_engine.kernels.interface import AttentionBatch
from shoal_engine.memory_layout import CacheLayout
from shoal_engine.models.llama import Llama
from shoal_engine.placement import Placement
from shoal_engine.plain_draws import PlainDraws
from shoal_engine.plan import Plan


@dataclass(frozen=True, slots=True)
class Computed:
    """What a step gave. hidden [T, H] of all tokens in plan order; sample_rows [S] int64: those to sample from, None = all.
    chosen: token ids [S] int64 and ok [S], when the step has drawn them itself, as it was asked.

    On a GPU they hold until the next step.
    """

    hidden: Tensor
    sample_rows: Tensor | None
    chosen: tuple[Tensor, Tensor] | None = None

    @property
    def sampling(self) -> Tensor:
        """[S, H]."""
        return self.hidden if self.sample_rows is None else self.hidden[self.sample_rows]


class Runner:
    """For a CPU; `cuda_runner.CudaRunner` is this on a GPU."""

    def __init__(
        self, model: Llama, cache: Tensor, layout: CacheLayout, max_num_seqs: int, max_model_len: int
    ) -> None:
        self.model = model
        self.vocab_size = model.config.vocab_size
        self.cache = cache
        self._builder = BatchBuilder(max_num_seqs, layout.blocks_for(max_model_len), layout.block_tokens)
        self._sampled = torch.zeros(max_num_seqs, dtype=torch.int64, device=cache.device)
        self._sampled_rows: dict[str, int] = {}

    def run(self, plan: Plan, asked: PlainDraws | None = None) -> Computed:
        """Run every chunk of `plan`. asked: what its rows ask for, if it decodes only and may draw by itself."""
        return self._compute(self._builder.build(plan, self._sampled_rows), asked)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [S, H] -> [S, vocab] in the model's dtype."""
        return self.model.logits(hidden)

    def keep(self, request_ids: Sequence[str], token_ids: Tensor) -> None:
        """What the step has sampled [S] int64: the next one may begin with it before the host has seen it."""
        self._sampled[: len(request_ids)].copy_(token_ids)
        self._remember(request_ids)

    def _remember(self, request_ids: Sequence[str]) -> None:
        self._sampled_rows = {request_id: row for row, request_id in enumerate(request_ids)}

    def release(self, request_ids: Iterable[str]) -> None:
        """Forget requests that have ended or lost their blocks."""
        self._builder.release(request_ids)

    def prepare(self) -> bool:
        """Do a little of what makes later steps faster; False when nothing is left to do."""
        return False

    def give_back_memory(self) -> None:
        """Free what is kept for speed alone, after a step that ran out of memory. A CPU's allocator keeps nothing."""

    def _compute(self, host: HostBatch, asked: PlainDraws | None) -> Computed:
        return self._forward(host, [torch.from_numpy(array) for array in arrays_of(host)])

    def _forward(self, host: HostBatch, tensors: Sequence[Tensor], shares_prefixes: bool = False) -> Computed:
        token_ids, sample_rows, query_start, context_lens, tables, slots, positions = tensors
        if host.num_pending:
            token_ids = torch.where(token_ids < 0, self._sampled[(-1 - token_ids).clamp_(min=0)], token_ids)
        attention = AttentionBatch(
            query_start=query_start,
            context_lens=context_lens,
            tables=tables,
            slots=slots,
            positions=positions,
            num_decodes=host.num_decodes,
            max_query_len=host.max_query_len,
            max_context_len=host.max_context_len,
            block_tokens=host.block_tokens,
            chunks=host.chunks,
            shares_prefixes=shares_prefixes,
        )
        return Computed(self.model(token_ids, attention, self.cache), sample_rows)


def arrays_of(host: HostBatch) -> tuple[NDArray[Any], ...]:
    """What the device is to read of a step, in the order that `_forward` takes it."""
    return (
        host.token_ids,
        host.sample_rows,
        host.query_start,
        host.context_lens,
        host.tables,
        host.slots,
        host.positions,
    )


def empty_cache(layout: CacheLayout, num_blocks: int, place: Placement) -> Tensor:
    """[layers, num_blocks, 2, kv_heads, block_tokens, head_dim] of zeros."""
    shape = (layout.num_layers, num_blocks, 2, layout.num_kv_heads, layout.block_tokens, layout.head_dim)
    if place.device.type != "cpu":
        return torch.zeros(shape, dtype=place.cache_dtype, device=place.device)
    # numpy asks the kernel for zero pages, which take memory only as blocks are used; torch would write them all now.
    zeros = np.zeros(layout.block_bytes * num_blocks, dtype=np.uint8)
    return torch.from_numpy(zeros).view(place.cache_dtype).view(shape)
