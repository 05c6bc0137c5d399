"""The GPU's kernels. What they compute is `interface.py`'s; how is in the `triton_*.py` and `gluon_*.py` files beside it.

Nothing here waits for the device or reads a value from it, so that a step can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoal_engine.kernels import (
    cudnn_prefill,
    gluon_decode,
    triton_decode,
    triton_norm,
    triton_prefill,
    triton_rotary,
)
from shoal_engine.kernels.cudnn_prefill import DensePrefill, StepRows
from shoal_engine.kernels.fused_tiles import AttentionTile
from shoal_engine.kernels.gpu import kind_of
from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadInput, HeadLayout, Kernels
from shoal_engine.kernels.triton_decode import DecodeTiling, DecodeWorkspace
from shoal_engine.kernels.triton_decode_plan import DecodePlan, plan_step
from shoal_engine.kernels.triton_fused_launch import can_overlap
from shoal_engine.kernels.triton_prefill import PrefillTiling
from shoal_engine.kernels.triton_rotary import RotaryTiling


class CudaKernels(Kernels):
    """Implements `interface.Kernels` for float32 and bfloat16. Keeps workspaces between calls: one stream at a time.

    The layers of a step share the plan of its decodes, which is made when the first of them attends. A caller that
    keeps one batch object and changes its tensors in place, as a CUDA graph does, calls `begin_step` before each step and
    inside the captured part. One eager step before the capture compiles the kernels and allocates the workspace.
    """

    def __init__(
        self, decode_tiling: DecodeTiling | None = None, prefill_tiling: PrefillTiling | None = None
    ) -> None:
        """The tilings default to what was fastest on an H200 for heads of 128 (benchmarks/h200/kernels.py).

        A tiling that is given serves all: without a decode tiling, decodes alone are `gluon_decode`'s where it serves;
        without a prefill tiling, long fresh prompts go to cuDNN.
        """
        self._decode_tiling = decode_tiling
        self._prefill_tiling = prefill_tiling
        self._rotary_tiling: RotaryTiling | None = None  # by the number of tokens
        self._workspaces: dict[tuple[HeadLayout, int, torch.device], DecodeWorkspace] = {}
        self._batch: AttentionBatch | None = None
        self._plans: dict[tuple[HeadLayout, int | None, DecodeTiling | AttentionTile], DecodePlan] = {}

    def begin_step(self, batch: AttentionBatch) -> None:
        """Forget the plans: the lengths in `batch` have changed."""
        self._batch, self._plans = batch, {}

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return triton_norm.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return triton_norm.rms_norm(x, weight, eps, residual)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return triton_norm.silu_mul(gate_up)

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
        _check_cache(cache, qkv)
        return triton_rotary.rotate_and_store(
            qkv, layout, rope_table, batch, cache, q_norm, k_norm, eps, tiling=self._rotary_tiling
        )

    def attend(
        self, q: Tensor, layout: HeadLayout, batch: AttentionBatch, cache: Tensor, scale: AttentionScale
    ) -> Tensor:
        _check_cache(cache, q)
        dense = self._dense_prefills(batch, layout, scale, q.dtype)
        return self._attend(StepRows(q.contiguous()), layout, batch, cache, scale, dense)

    def attend_new(
        self,
        qkv: Tensor,
        layout: HeadLayout,
        heads: HeadInput,
        batch: AttentionBatch,
        cache: Tensor,
        scale: AttentionScale,
    ) -> Tensor:
        """Decodes alone are one kernel where `gluon_decode` serves. Keys that cuDNN will read are written as rows too.

        Not if the cache is narrower and rounds: the first chunk of a prompt sees what the others will, the pages.
        """
        _check_cache(cache, qkv)
        qkv = qkv.contiguous()
        alone = 0 < batch.num_decodes == batch.num_requests and not batch.shares_prefixes
        plain = self._decode_tiling is None and gluon_decode.serves(layout, scale, qkv.dtype, qkv.device)
        if alone and plain:
            return self._attend_decodes(qkv, layout, heads, batch, cache, scale)
        keys, values = None, None
        dense = self._dense_prefills(batch, layout, scale, qkv.dtype)
        if dense and cache.dtype == qkv.dtype:
            keys = qkv.new_empty((qkv.shape[0], layout.num_kv_heads, layout.head_dim))
            values = qkv.view(qkv.shape[0], -1, layout.head_dim)[:, -layout.num_kv_heads :]
        q = triton_rotary.rotate_and_store(
            qkv, layout, heads.rope_table, batch, cache, heads.q_gain, heads.k_gain, heads.eps, keys
        )
        return self._attend(StepRows(q, keys, values), layout, batch, cache, scale, dense)

    def _attend_decodes(
        self,
        qkv: Tensor,
        layout: HeadLayout,
        heads: HeadInput,
        batch: AttentionBatch,
        cache: Tensor,
        scale: AttentionScale,
    ) -> Tensor:
        tile = gluon_decode.tile_for(batch.num_decodes, cache.element_size(), kind_of(qkv.device).processors)
        plan, fresh = self._plan_of(batch, layout, scale, tile)
        workspace = self._workspace_of(layout, plan.workers, qkv.device)
        out = qkv.new_empty((qkv.shape[0], layout.q_size))
        overlap = can_overlap(qkv.device)
        gluon_decode.attend_rows(
            qkv, layout, batch, cache, scale, heads, plan, workspace, tile, out, overlap, fresh
        )
        return out

    def _attend(
        self,
        rows: StepRows,
        layout: HeadLayout,
        batch: AttentionBatch,
        cache: Tensor,
        scale: AttentionScale,
        dense: tuple[DensePrefill, ...],
    ) -> Tensor:
        """dense: what goes to cuDNN."""
        q = rows.queries
        out = q.new_empty((q.shape[0], layout.q_size))
        if batch.num_decodes > 0:
            decode_tiling = self._decode_tiling or triton_decode.tiling_for(layout, q.dtype)
            plan, _ = self._plan_of(batch, layout, scale, decode_tiling)
            workspace = self._workspace_of(layout, plan.workers, q.device)
            triton_decode.attend_decodes(q, layout, batch, cache, scale, plan, workspace, decode_tiling, out)
        if batch.num_requests > batch.num_decodes:
            return self._attend_prefills(rows, layout, batch, cache, scale, dense, out)
        return out

    def _attend_prefills(
        self,
        rows: StepRows,
        layout: HeadLayout,
        batch: AttentionBatch,
        cache: Tensor,
        scale: AttentionScale,
        dense: tuple[DensePrefill, ...],
        out: Tensor,
    ) -> Tensor:
        """`out` with the rows of the prefills filled in, or what cuDNN returned when that is all there is."""
        q = rows.queries
        rows_done = 0
        for one in dense:
            attended = cudnn_prefill.attend_fresh(rows, layout, batch, cache, scale, one)
            if attended.shape == out.shape:
                return attended
            out[one.rows] = attended
            rows_done += attended.shape[0]
        if rows_done < q.shape[0] - batch.num_decodes:
            first_rows = cudnn_prefill.rows_left(batch, dense) if dense else None
            tiling = self._prefill_tiling or triton_prefill.tiling_for(layout, batch, q.dtype)
            triton_prefill.attend_prefills(q, layout, batch, cache, scale, tiling, out, first_rows)
        return out

    def _dense_prefills(
        self, batch: AttentionBatch, layout: HeadLayout, scale: AttentionScale, dtype: torch.dtype
    ) -> tuple[DensePrefill, ...]:
        if self._prefill_tiling is not None:
            return ()
        return cudnn_prefill.dense_prefills(batch, layout, scale, dtype)

    def _plan_of(
        self,
        batch: AttentionBatch,
        layout: HeadLayout,
        scale: AttentionScale,
        tiling: DecodeTiling | AttentionTile,
    ) -> tuple[DecodePlan, bool]:
        """And whether it was made just now."""
        if batch is not self._batch:
            self.begin_step(batch)
        key = (layout, scale.window, tiling)
        if key in self._plans:
            return self._plans[key], False
        if isinstance(tiling, AttentionTile):
            plan = plan_step(batch, layout, scale.window, tiling)
        else:
            plan = triton_decode.plan_for(batch, layout, scale, tiling)
        self._plans[key] = plan
        return plan, True

    def _workspace_of(self, layout: HeadLayout, workers: int, device: torch.device) -> DecodeWorkspace:
        key = (layout, workers, device)
        if key not in self._workspaces:
            self._workspaces[key] = DecodeWorkspace.allocate(workers, layout, device)
        return self._workspaces[key]


def _check_cache(cache: Tensor, x: Tensor) -> None:
    """Blocks may stand apart, as in a pool that keeps all layers of a block together; a block itself is one piece."""
    narrow = cache.dtype == torch.float8_e4m3fn and x.dtype in (torch.bfloat16, torch.float16)
    if not (narrow or cache.dtype == x.dtype) or not cache[0].is_contiguous():
        raise ValueError(
            f"the blocks of the cache must be contiguous, of the dtype of their keys, {x.dtype}, or float8_e4m3fn"
        )
    if cache.shape[-1] % 2 != 0:
        raise ValueError("rotary heads have an even size")
