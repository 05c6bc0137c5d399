"""A decode step of a Llama-like model for a few rows on a GPU: five kernels a layer in place of eight to ten.

Each layer: norm and QKV product; head norm, rotation, write and attention; output product and residual; norm, gate-up
product and SiLU; down product and residual. What it computes is `models.llama.Llama`'s, which serves everything else:
prompts, many rows, other devices, weights in other layouts. Nothing here waits for the device or depends on lengths, so a
step can be captured in a CUDA graph after one eager step, which compiles; one stream at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal_engine.fused_choice import RowsTiles, RowTiles, has_narrow, reads_float16, supports, tiles_for
from shoal_engine.fused_layer import FusedLayer, fused_layers
from shoal_engine.fused_space import AttentionSpaces, FusedSpace
from shoal_engine.kernels import gluon_decode, triton_fused_attention
from shoal_engine.kernels.fused_tiles import MAX_ROWS, AttentionTile, attention_tile
from shoal_engine.kernels.gpu import kind_of
from shoal_engine.kernels.interface import AttentionBatch
from shoal_engine.kernels.triton_decode_plan import DecodePlan, plan_step
from shoal_engine.kernels.triton_fused_gemv import multiply_row
from shoal_engine.kernels.triton_fused_launch import can_overlap
from shoal_engine.kernels.triton_fused_operands import NormInput
from shoal_engine.kernels.triton_fused_product import multiply_rows, square_tiles
from shoal_engine.kernels.triton_fused_rows import embed, normalise
from shoal_engine.models.llama import Llama


@dataclass(frozen=True, slots=True)
class _Step:
    """What the layers of one step share."""

    space: FusedSpace
    batch: AttentionBatch
    plans: dict[int | None, DecodePlan]
    attention: AttentionTile
    products: RowTiles | RowsTiles


class FusedDecode:
    """Called as a Llama is, with batches of decodes alone. Reads the model's own weights."""

    def __init__(self, model: Llama, max_rows: int = MAX_ROWS, overlap: bool | None = None) -> None:
        """overlap: kernels start before the one before them ends; None = where the device can.

        Raises ValueError for a model that `fused_choice.supports` refuses.
        """
        if not supports(model, max_rows):
            raise ValueError("this model's weights or device have no fused decode step")
        device, dtype = model.embedding.device, model.embedding.dtype
        self._embedding = model.embedding
        self._final = NormInput(model.norm.weight, model.norm.eps)
        self._layout = model.blocks[0].attention.layout
        self._layers = fused_layers(model)
        self._overlap = can_overlap(device) if overlap is None else overlap
        self._narrow = has_narrow(model)
        scales = {layer.scale for layer in self._layers}
        self._in_registers = all(gluon_decode.serves(self._layout, scale, dtype, device) for scale in scales)
        operands = torch.float16 if reads_float16(self._layers[0], max_rows, self._narrow) else dtype
        attended = operands if self._in_registers else dtype  # the other kernel writes no sixteenths
        self._space = FusedSpace.allocate(
            model.config, self._layout, max_rows, dtype, operands, attended, device
        )
        self._attention_spaces = AttentionSpaces(self._layout, device)
        self._products: dict[int, RowTiles | RowsTiles] = {}
        self._attention: dict[int, AttentionTile] = {}  # that `use` has set

    @property
    def max_rows(self) -> int:
        return self._space.max_rows

    def products(self, rows: int) -> RowTiles | RowsTiles:
        """The tiles that steps of `rows` multiply with."""
        if rows not in self._products:
            self._products[rows] = tiles_for(self._layers[0], rows, self._narrow)
        return self._products[rows]

    def attention(self, rows: int, cache_bytes: int) -> AttentionTile:
        """The tile that steps of `rows` attend with. cache_bytes: of a number in the cache."""
        if rows in self._attention:
            return self._attention[rows]
        if self._in_registers:
            return gluon_decode.tile_for(rows, cache_bytes, kind_of(self._embedding.device).processors)
        return attention_tile(self._layout, rows)

    def use(self, rows: int, products: RowTiles | RowsTiles, attention: AttentionTile | None = None) -> None:
        """Other tiles from now on; for tuning and tests. RowTiles are of one row; float16 is for narrow tiles alone."""
        self._products[rows] = products
        if attention is not None:
            self._attention[rows] = attention

    def __call__(self, token_ids: Tensor, batch: AttentionBatch, cache: Tensor) -> Tensor:
        """token_ids [R] int64, one of each request; cache as the model's -> hidden [R, H], normalised.

        A padding row has context 0 and slot -1. Raises ValueError for more rows than it was built for.
        """
        rows = token_ids.shape[0]
        if rows > self.max_rows or not rows == batch.num_requests == batch.num_decodes:
            raise ValueError(
                f"a fused step is of 1 to {self.max_rows} decodes and nothing else, got {rows} tokens"
            )
        step = self._step(rows, batch, cache.element_size())
        stream = step.space.stream
        tiles = step.products
        first = 1 if isinstance(tiles, RowTiles) else square_tiles(stream.hidden.shape[1], tiles.down)
        embed(token_ids, self._embedding, self._layers[0].input_norm.gain, stream, first, self._overlap)
        following = [layer.input_norm for layer in self._layers[1:]] + [self._final]
        for layer, layer_cache, norm in zip(self._layers, cache.unbind(0), following, strict=True):
            if isinstance(tiles, RowTiles):
                self._one_row(layer, step, tiles, layer_cache)
            else:
                self._few_rows(layer, step, tiles, layer_cache, norm)
        out = torch.empty_like(stream.hidden)
        normalise(stream.hidden, self._final, out, self._overlap)
        return out

    def _step(self, rows: int, batch: AttentionBatch, cache_bytes: int) -> _Step:
        tile = self.attention(rows, cache_bytes)
        windows = {layer.scale.window for layer in self._layers}
        plans = {window: plan_step(batch, self._layout, window, tile) for window in windows}
        return _Step(self._space.first(rows), batch, plans, tile, self.products(rows))

    def _attend(self, layer: FusedLayer, step: _Step, cache: Tensor) -> None:
        plan = step.plans[layer.scale.window]
        kernel = gluon_decode if self._in_registers else triton_fused_attention
        kernel.attend_rows(
            step.space.qkv, self._layout, step.batch, cache, layer.scale, layer.heads, plan,
            self._attention_spaces.of(plan.workers), step.attention, step.space.attended, self._overlap,
        )  # fmt: skip

    def _one_row(self, layer: FusedLayer, step: _Step, tiles: RowTiles, cache: Tensor) -> None:
        """The residual is read as it is and normalised beside each product."""
        space, hidden, overlap = step.space, step.space.stream.hidden, self._overlap
        multiply_row(hidden, layer.qkv, space.qkv, tiles.qkv, overlap, layer.input_norm)
        self._attend(layer, step, cache)
        multiply_row(space.attended, layer.output, hidden, tiles.output, overlap, adds=True)
        multiply_row(
            hidden, layer.gate_up, space.activated, tiles.gate_up, overlap, layer.post_norm, gated=True
        )
        multiply_row(space.activated, layer.down, hidden, tiles.down, overlap, adds=True)

    def _few_rows(
        self, layer: FusedLayer, step: _Step, tiles: RowsTiles, cache: Tensor, following: NormInput
    ) -> None:
        """following: the norm after this layer, for which the last product prepares the residual."""
        space, stream, sums, overlap = step.space, step.space.stream, step.space.sums, self._overlap
        width = stream.hidden.shape[1]
        multiply_rows(
            stream.scaled, layer.qkv, space.qkv, tiles.qkv, sums, overlap, stream,
            square_tiles(width, tiles.down), layer.input_norm.eps,
        )  # fmt: skip
        self._attend(layer, step, cache)
        multiply_rows(
            space.attended, layer.output, stream.scaled, tiles.output, sums, overlap, adds_to=stream,
            gain=layer.post_norm.gain,
        )  # fmt: skip
        multiply_rows(
            stream.scaled, layer.gate_up, space.activated, tiles.gate_up, sums, overlap, stream,
            square_tiles(width, tiles.output), layer.post_norm.eps, gated=True,
        )  # fmt: skip
        multiply_rows(
            space.activated, layer.down, stream.scaled, tiles.down, sums, overlap, adds_to=stream,
            gain=following.gain,
        )  # fmt: skip
