"""What a device must be able to do for a transformer. Knows shapes; knows nothing of models, requests or devices.

`reference.py` is the torch twin of every operation: it is the oracle of the others and runs where nothing faster does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """How attention heads are cut. Query head h reads key/value head h // (num_heads // num_kv_heads)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        return self.q_size + 2 * self.kv_size


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Where the tokens of this step stand. Requests come in batch order: the first `num_decodes` have one query token each.

    query_start [R+1] int32: request r owns tokens query_start[r]:query_start[r+1]
    context_lens [R] int32: tokens of r that are visible after this step, its own queries included
    tables [R, blocks] int32: block ids of r, padded with 0
    slots [T] int64: block_id * block_tokens + offset, where token t's key and value go
    positions [T] int64: position of token t in its request
    chunks: (query tokens, visible tokens) of each request after the decodes, for kernels that choose on the host; () = unsaid
    shares_prefixes: neighbouring decodes may begin with the same blocks, and looking for that is worth two kernels
    """

    query_start: Tensor
    context_lens: Tensor
    tables: Tensor
    slots: Tensor
    positions: Tensor
    num_decodes: int
    max_query_len: int
    max_context_len: int
    block_tokens: int
    chunks: tuple[tuple[int, int], ...] = ()
    shares_prefixes: bool = False

    @property
    def num_requests(self) -> int:
        return int(self.context_lens.shape[0])


@dataclass(frozen=True, slots=True)
class AttentionScale:
    """softmax(scale * q.k) over the last `window` tokens (None: all of them).

    softcap: a logit x becomes softcap * tanh(x / softcap).
    sinks [num_heads]: one more logit of every head, which takes its share of the softmax and has no value.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class HeadInput:
    """How QKV becomes heads: rope_table [positions, D] float32; q_gain, k_gain [D] of the head norms, or None; their eps."""

    rope_table: Tensor
    q_gain: Tensor | None = None
    k_gain: Tensor | None = None
    eps: float = 1e-6


class Kernels(Protocol):
    """All tensors of one call share a device; x is float32 or bfloat16, arithmetic inside is float32."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, H] -> x / sqrt(mean(x^2) + eps) * weight, same shape and dtype."""

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """residual [T, H] += x in place; returns rms_norm(residual)."""

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """gate_up [T, 2*I] -> silu(gate_up[:, :I]) * gate_up[:, I:]."""

    def rotate_and_store(
        self,
        qkv: Tensor,
        layout: HeadLayout,
        rope_table: Tensor,
        batch: AttentionBatch,
        cache: Tensor,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 1e-6,
    ) -> Tensor:
        """Normalise (when q_norm, k_norm [D] are given) and rotate q and k; write k and v into the cache; return q.

        qkv [T, q_size + 2*kv_size]; rope_table [max_positions, D] float32 = cos (D/2) then sin (D/2);
        rotation pairs element i with i + D/2 (the "neox" order).
        cache [num_blocks, 2, num_kv_heads, block_tokens, D]: [:, 0] keys, [:, 1] values; padding tokens have slot -1.
        The dtype of the cache is that of qkv or, where a device has it, float8_e4m3fn: rounded, at most 448 in size.
        Blocks may be shared and copied whole. How a device orders the numbers inside one [block_tokens, D] is its own.
        Returns q [T, num_heads, D].
        """

    def attend(
        self, q: Tensor, layout: HeadLayout, batch: AttentionBatch, cache: Tensor, scale: AttentionScale
    ) -> Tensor:
        """Causal attention of q [T, num_heads, D] over the paged cache; returns [T, num_heads * D]."""

    def attend_new(
        self,
        qkv: Tensor,
        layout: HeadLayout,
        heads: HeadInput,
        batch: AttentionBatch,
        cache: Tensor,
        scale: AttentionScale,
    ) -> Tensor:
        """What a layer does with its QKV: `rotate_and_store`, then `attend`. A device may do both at once."""
        q = self.rotate_and_store(
            qkv, layout, heads.rope_table, batch, cache, heads.q_gain, heads.k_gain, heads.eps
        )
        return self.attend(q, layout, batch, cache, scale)
