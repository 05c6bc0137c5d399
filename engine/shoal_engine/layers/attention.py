"""Self-attention over the paged cache: projections, rotation, store, attend. The cache layout is `kernels/interface.py`'s."""

from __future__ import annotations

from torch import Tensor

from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadLayout, Kernels
from shoal_engine.layers.linear import Linear


class Attention:
    def __init__(
        self,
        qkv_proj: Linear,
        o_proj: Linear,
        layout: HeadLayout,
        scale: AttentionScale,
        rope: Tensor,
        kernels: Kernels,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        norm_eps: float = 1e-6,
    ) -> None:
        self.qkv_proj = qkv_proj
        self.o_proj = o_proj
        self.layout = layout
        self.scale = scale
        self.rope = rope
        self.kernels = kernels
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.norm_eps = norm_eps

    def __call__(self, x: Tensor, batch: AttentionBatch, cache: Tensor) -> Tensor:
        """x [T, H]; cache [num_blocks, 2, num_kv_heads, block_tokens, D] of this layer -> [T, H]."""
        q = self.kernels.rotate_and_store(
            self.qkv_proj(x), self.layout, self.rope, batch, cache, self.q_norm, self.k_norm, self.norm_eps
        )
        return self.o_proj(self.kernels.attend(q, self.layout, batch, cache, self.scale))
