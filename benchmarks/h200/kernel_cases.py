"""Batches and caches on the GPU for kernels.py: shuffled blocks, real lengths, random or poisoned contents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal_engine.kernels.interface import AttentionBatch, HeadLayout

LLAMA_8B = HeadLayout(32, 8, 128)
QWEN3_06B = HeadLayout(16, 8, 128)
DEVICE = "cuda"


@dataclass(frozen=True, slots=True)
class Case:
    """`queries` new tokens of `contexts`; requests with one query come first. All begin with the same `shared` tokens."""

    name: str
    queries: tuple[int, ...]
    contexts: tuple[int, ...]
    shared: int = 0

    @property
    def tokens(self) -> int:
        return sum(self.queries)

    def kv_bytes(self, layout: HeadLayout, element_bytes: int = 2) -> int:
        """What one layer must read of a cache, a shared prefix once."""
        tokens = sum(self.contexts) - self.shared * (len(self.contexts) - 1)
        return tokens * 2 * layout.kv_size * element_bytes

    def flops(self, layout: HeadLayout) -> float:
        """Products of the visible pairs only: 4 per pair and element of a head."""
        pairs = sum(n * (c - n) + n * (n + 1) / 2 for n, c in zip(self.queries, self.contexts, strict=True))
        return 4.0 * pairs * layout.q_size


def uniform(batch: int, context: int) -> Case:
    return Case(f"{batch}x{context}", (1,) * batch, (context,) * batch)


def fresh(batch: int, tokens: int) -> Case:
    """Whole prompts, nothing cached."""
    return Case(f"{batch}x{tokens} fresh", (tokens,) * batch, (tokens,) * batch)


def chunk(batch: int, tokens: int, cached: int) -> Case:
    return Case(f"{batch}x{tokens} after {cached}", (tokens,) * batch, (cached + tokens,) * batch)


def build(case: Case, block_tokens: int) -> tuple[AttentionBatch, int]:
    """The batch on the device and the number of blocks; block 0 is nobody's. A context of 0 is a padding row."""
    blocks = [-(-context // block_tokens) for context in case.contexts]
    order = (torch.randperm(sum(blocks)) + 1).int()
    tables = torch.zeros(len(blocks), max(1, *blocks), dtype=torch.int32)
    slots, positions, used = [], [], 0
    for row, (new, context, count) in enumerate(zip(case.queries, case.contexts, blocks, strict=True)):
        tables[row, :count] = order[used : used + count]
        tables[row, : case.shared // block_tokens] = tables[0, : case.shared // block_tokens]
        used += count
        position = torch.arange(context - new, context).clamp(min=0)
        slot = tables[row, position // block_tokens].long() * block_tokens + position % block_tokens
        positions.append(position)
        slots.append(slot if context else torch.full_like(slot, -1))
    decodes = next((i for i, n in enumerate(case.queries) if n != 1), len(case.queries))
    batch = AttentionBatch(
        query_start=torch.tensor([0, *case.queries]).cumsum(0).int().to(DEVICE),
        context_lens=torch.tensor(case.contexts, dtype=torch.int32, device=DEVICE),
        tables=tables.to(DEVICE),
        slots=torch.cat(slots).to(DEVICE),
        positions=torch.cat(positions).to(DEVICE),
        num_decodes=decodes,
        max_query_len=max(case.queries),
        max_context_len=max(case.contexts),
        block_tokens=block_tokens,
        chunks=tuple(zip(case.queries, case.contexts, strict=True))[decodes:],
        shares_prefixes=case.shared > 0,
    )
    return batch, sum(blocks) + 1


def random_caches(
    count: int, num_blocks: int, layout: HeadLayout, block_tokens: int, dtype: torch.dtype = torch.bfloat16
) -> list[Tensor]:
    shape = (num_blocks, 2, layout.num_kv_heads, block_tokens, layout.head_dim)
    return [torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).normal_().to(dtype) for _ in range(count)]


def poisoned_cache(
    case: Case, batch: AttentionBatch, num_blocks: int, layout: HeadLayout, dtype: torch.dtype
) -> Tensor:
    """Random where a request has a token, NaN everywhere else."""
    shape = (num_blocks, 2, layout.num_kv_heads, batch.block_tokens, layout.head_dim)
    wide = torch.bfloat16 if dtype.itemsize == 1 else dtype
    cache = torch.full(shape, float("nan"), dtype=wide, device=DEVICE)
    for table, length in zip(batch.tables, case.contexts, strict=True):
        position = torch.arange(length, device=DEVICE)
        at = table[position // batch.block_tokens].long()
        values = torch.randn(length, 2, layout.num_kv_heads, layout.head_dim, device=DEVICE, dtype=wide)
        cache[at, :, :, position % batch.block_tokens] = values
    return cache.to(dtype)


def rope_table(max_positions: int, head_dim: int) -> Tensor:
    angles = torch.rand(max_positions, head_dim // 2, device=DEVICE) * 6.28
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def random_rows(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, device=DEVICE, dtype=torch.bfloat16)


def head_norms(layout: HeadLayout, wanted: bool) -> tuple[Tensor | None, Tensor | None]:
    """Gains of the queries' and of the keys' norm, or neither."""
    if not wanted:
        return None, None
    return random_rows(1, layout.head_dim)[0], random_rows(1, layout.head_dim)[0]


def relative_error(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want||; NaN never passes a comparison."""
    return float((got.float() - want.float()).norm() / want.float().norm())


def widened(values: Tensor, scales: Tensor) -> Tensor:
    """values [M, K] float8 times scales [M, 1], or of groups [M, K / 128], in float32."""
    return values.float() * scales.repeat_interleave(values.shape[1] // scales.shape[1], 1)


def repeat(values: Sequence[int], count: int) -> tuple[int, ...]:
    return tuple(values) * count
