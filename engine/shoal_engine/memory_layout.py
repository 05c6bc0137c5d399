"""How the KV cache is cut, and what of a device's memory goes where. Pure arithmetic, no tensors."""

from __future__ import annotations

from dataclasses import dataclass

from shoal_engine.errors import ModelLoadError

# The host's memory is shared with everything else on the machine: take a quarter of what is free, and no more than
# a laptop can spare. Pages are only touched, and so only used, as blocks are.
HOST_MEMORY_SHARE = 0.25
HOST_MEMORY_CAP_BYTES = 4 * 2**30


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Keys and values of one block in all layers."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_tokens: int
    dtype_bytes: int

    @property
    def block_bytes(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.block_tokens * self.dtype_bytes

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)


def num_blocks(layout: CacheLayout, budget_bytes: int, max_model_len: int, max_num_seqs: int) -> int:
    """Blocks to allocate, the null block included: what the budget affords, at most what all requests could ever fill.

    Raises ModelLoadError when not even one request of full length fits.
    """
    longest = layout.blocks_for(max_model_len)
    affordable = budget_bytes // layout.block_bytes
    if affordable < longest + 1:
        fits = max(0, (affordable - 1) * layout.block_tokens)
        raise ModelLoadError(
            f"the KV cache of one request of {max_model_len} tokens needs {(longest + 1) * layout.block_bytes >> 20} MiB, "
            f"{budget_bytes >> 20} MiB are available; set --max-model-len to {fits} or less, or raise --kv-cache-memory-bytes"
        )
    return int(min(affordable, longest * max_num_seqs + 1))


def host_budget_bytes(available_bytes: int) -> int:
    """What a CPU engine takes for its cache when it is not told."""
    return min(int(available_bytes * HOST_MEMORY_SHARE), HOST_MEMORY_CAP_BYTES)


def dense_copy_fits(stored_bytes: int, available_bytes: int) -> bool:
    """Whether a quantised model may also be kept dense, in 16 bits instead of 4: in a quarter of what is free."""
    return 4 * stored_bytes <= HOST_MEMORY_SHARE * available_bytes
