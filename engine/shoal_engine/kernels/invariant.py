"""The GPU's kernels for `--deterministic`: a token's result has the same bits alone, in any batch and in any chunk.

Decodes run the kernel of prompts, with one tiling for all: keys are walked in tiles that begin at fixed positions and
nothing is split by how many requests there are. Heads are rotated with one tiling too. Everything else of `CudaKernels`
treats rows one by one already.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from shoal_engine.kernels.cuda import CudaKernels
from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadInput, HeadLayout, Kernels
from shoal_engine.kernels.triton_prefill import FLOAT32_TILING, SHORT_TILING, WIDE_TILING, PrefillTiling
from shoal_engine.kernels.triton_rotary import SPREAD


class InvariantKernels(CudaKernels):
    """As `CudaKernels`, begin_step included. Long contexts decode slower: one program reads all keys of a head."""

    def __init__(self, tiling: PrefillTiling | None = None) -> None:
        """tiling: for tests and proofs; two tilings give different bits."""
        super().__init__()
        self._rotary_tiling = SPREAD  # another one adds the squares of a head in another order
        self._tiling = tiling
        self._seen: AttentionBatch | None = None
        self._prefills: AttentionBatch | None = None

    def begin_step(self, batch: AttentionBatch) -> None:
        super().begin_step(batch)
        self._seen, self._prefills = batch, _as_prefills(batch)

    def attend_new(
        self,
        qkv: Tensor,
        layout: HeadLayout,
        heads: HeadInput,
        batch: AttentionBatch,
        cache: Tensor,
        scale: AttentionScale,
    ) -> Tensor:
        """In two kernels: the one that does both deals a request's tokens by how many there are of all."""
        return Kernels.attend_new(self, qkv, layout, heads, batch, cache, scale)

    def attend(
        self, q: Tensor, layout: HeadLayout, batch: AttentionBatch, cache: Tensor, scale: AttentionScale
    ) -> Tensor:
        if batch is not self._seen:
            self.begin_step(batch)
        self._prefill_tiling = self._tiling or tiling_for(layout, q.dtype)
        return super().attend(q, layout, self._prefills or batch, cache, scale)


def tiling_for(layout: HeadLayout, dtype: torch.dtype) -> PrefillTiling:
    """One for a model, whatever the batch."""
    if dtype == torch.float32:
        return FLOAT32_TILING
    return WIDE_TILING if layout.head_dim > 128 else SHORT_TILING


def _as_prefills(batch: AttentionBatch) -> AttentionBatch:
    """Padding rows see one token of block 0 instead of none, so that they divide by something; nobody reads them."""
    return replace(batch, num_decodes=0, context_lens=batch.context_lens.clamp(min=1))
