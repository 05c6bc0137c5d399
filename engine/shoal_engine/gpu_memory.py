"""How much of a GPU's memory is left for the KV cache, found by running the largest step there can be.

Not how it is cut into blocks (`memory_layout`). A process counts its own use only, so that two engines can share a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal_engine.kernels.interface import AttentionBatch
from shoal_engine.limits import SchedulerLimits
from shoal_engine.memory_layout import CacheLayout
from shoal_engine.models.llama import Llama
from shoal_engine.placement import Placement
from shoal_engine.runner import empty_cache

# What a process takes beside torch's allocator: the CUDA context, cuBLAS and the code of kernels.
CONTEXT_BYTES = 768 * 2**20
# Recorded decode graphs keep their buffers for as long as the process lives.
GRAPHS_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Bytes. `peak` is the most that this process has allocated while it ran its largest step, weights included."""

    total: int
    free: int
    held: int
    peak: int

    def cache_budget(self, utilization: float) -> int:
        """What is left of this process's share, and no more than is free now."""
        own = int(self.total * utilization) - self.peak - CONTEXT_BYTES - GRAPHS_BYTES
        available = self.free + self.held - self.peak - GRAPHS_BYTES
        return max(0, min(own, available))


def measure(model: Llama, layout: CacheLayout, limits: SchedulerLimits, place: Placement) -> GpuMemory:
    """Run a step of max_num_batched_tokens and sample max_num_seqs rows from it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    largest_step(model, layout, limits, place)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return GpuMemory(total, free, torch.cuda.memory_reserved(), peak)


def largest_step(model: Llama, layout: CacheLayout, limits: SchedulerLimits, place: Placement) -> None:
    cache = empty_cache(layout, 1, place)
    tokens = limits.max_num_batched_tokens
    longest = min(tokens, limits.max_model_len)
    batch = _prompts(tokens, longest, layout, place.device)
    ids = torch.zeros(tokens, dtype=torch.int64, device=place.device)
    hidden = model(ids, batch, cache)
    logits = model.logits(hidden[: min(tokens, limits.max_num_seqs)])
    logits.to(torch.float32, copy=True)  # as edits and penalties do


def _prompts(tokens: int, longest: int, layout: CacheLayout, device: torch.device) -> AttentionBatch:
    """Prompts of `longest` tokens, all blocks of which are block 0, and none of which is written."""
    lengths = [longest] * (tokens // longest) + ([tokens % longest] if tokens % longest else [])
    context_lens = torch.tensor(lengths, dtype=torch.int32)
    ends = torch.cumsum(torch.tensor([0, *lengths]), 0).to(torch.int32)

    def there(tensor: Tensor) -> Tensor:
        return tensor.to(device)

    return AttentionBatch(
        query_start=there(ends),
        context_lens=there(context_lens),
        tables=torch.zeros((len(lengths), layout.blocks_for(longest)), dtype=torch.int32, device=device),
        slots=torch.full((tokens,), -1, dtype=torch.int64, device=device),
        positions=there(torch.cat([torch.arange(length) for length in lengths])),
        num_decodes=0,
        max_query_len=longest,
        max_context_len=longest,
        block_tokens=layout.block_tokens,
        chunks=tuple((length, length) for length in lengths),
    )
