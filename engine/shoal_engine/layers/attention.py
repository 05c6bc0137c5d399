"""Self-attention over the paged cache: projections, rotation, store, attend. The cache layout is `kernels/interface.py`'s."""

from __future__ import annotations

from torch import Tensor

from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadInput, HeadLayout, Kernels
from shoal_engine.layers.addend import Addend
from shoal_engine.layers.linear import Linear
from shoal_engine.layers.norm import RMSNorm


class Attention:
    def __init__(
        self,
        qkv_proj: Linear,
        o_proj: Linear,
        layout: HeadLayout,
        scale: AttentionScale,
        heads: HeadInput,
        kernels: Kernels,
    ) -> None:
        self.qkv_proj = qkv_proj
        self.o_proj = o_proj
        self.layout = layout
        self.scale = scale
        self.heads = heads
        self.kernels = kernels

    def __call__(
        self, x: Addend, residual: Tensor, norm: RMSNorm, batch: AttentionBatch, cache: Tensor
    ) -> Addend:
        """Of norm(residual += x), both [T, H] -> [T, H].

        cache [num_blocks, 2, num_kv_heads, block_tokens, D] of this layer.
        """
        qkv = self.qkv_proj.after_norm(x, residual, norm)
        attended = self.kernels.attend_new(qkv, self.layout, self.heads, batch, cache, self.scale)
        return self.o_proj.addend(attended)
