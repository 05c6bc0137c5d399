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

from shoal_engine.fused_layer import FusedLayer, fused_layer
from shoal_engine.fused_space import AttentionSpaces, FusedSpace
from shoal_engine.kernels import gluon_decode, gluon_narrow, triton_fused_attention
from shoal_engine.kernels.fused_tiles import (
    MAX_ROWS,
    AttentionTile,
    GemvTile,
    NarrowTile,
    ProductTile,
    attention_tile,
    gemv_tile,
    product_tile,
)
from shoal_engine.kernels.gpu import kind_of, on_gpu
from shoal_engine.kernels.interface import AttentionBatch
from shoal_engine.kernels.triton_decode_plan import DecodePlan, plan_step
from shoal_engine.kernels.triton_fused_gemv import multiply_row
from shoal_engine.kernels.triton_fused_launch import INTERPRETED, can_overlap
from shoal_engine.kernels.triton_fused_operands import FusedWeight, NormInput
from shoal_engine.kernels.triton_fused_product import multiply_rows, square_tiles
from shoal_engine.kernels.triton_fused_rows import embed, normalise
from shoal_engine.models.llama import Llama

# Beyond 32 rows separate kernels with cuBLAS's products are faster, of some weights sooner (benchmarks/h200/fused_decode.py).
_MOST_ROWS = (32, 16, 8)
_MAX_WIDTH = 32768  # of the residual: both ends of a row are one program's
# Numbers of a bfloat16 matrix of which one row in narrow tiles is faster than by GEMV: on an H200 a step of the 0.6B takes
# 0.52 ms by the one and 0.58 by the other, a step of the 8B, with 117 million in its largest, 3.9 and 3.8.
_MAX_NARROW_ROW = 2**26
# Numbers of a matrix in float8 that other than narrow tiles read fast enough.
_MAX_FLOAT8 = 2**24


@dataclass(frozen=True, slots=True)
class RowTiles:
    """Of a step of one row where no narrow tiles run, or weights are large."""

    qkv: GemvTile
    output: GemvTile
    gate_up: GemvTile
    down: GemvTile


@dataclass(frozen=True, slots=True)
class RowsTiles:
    """Of a step of 2 rows and more; of one row, narrow ones alone."""

    qkv: ProductTile | NarrowTile
    output: ProductTile | NarrowTile
    gate_up: ProductTile | NarrowTile
    down: ProductTile | NarrowTile


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

        Raises ValueError for a model that `supports` refuses.
        """
        if not self.supports(model, max_rows):
            raise ValueError("this model's weights or device have no fused decode step")
        device = model.embedding.device
        self._embedding = model.embedding
        self._final = NormInput(model.norm.weight, model.norm.eps)
        self._layout = model.blocks[0].attention.layout
        self._layers = _layers(model)
        self._overlap = can_overlap(device) if overlap is None else overlap
        dtype = model.embedding.dtype
        scales = {layer.scale for layer in self._layers}
        self._in_registers = all(gluon_decode.serves(self._layout, scale, dtype, device) for scale in scales)
        operands = torch.float16 if self._in_float16(max_rows) else dtype
        attended = operands if self._in_registers else dtype  # the other kernel writes no sixteenths
        self._space = FusedSpace.allocate(
            model.config, self._layout, max_rows, dtype, operands, attended, device
        )
        self._attention_spaces = AttentionSpaces(self._layout, device)
        self._products: dict[int, RowTiles | RowsTiles] = {}
        self._attention: dict[int, AttentionTile] = {}  # that `use` has set

    def _in_float16(self, rows: int) -> bool:
        """Whether every product is of float8 weights in narrow tiles, up to so many rows."""
        weights = [weight for layer in self._layers for weight in _weights(layer)]
        narrow = gluon_narrow.runs_on(self._embedding.device, self._embedding.dtype)
        tiles = _tiles(self._layers[0], rows, narrow)
        return all(isinstance(tile, NarrowTile) for tile in tiles) and all(
            weight.scale is not None for weight in weights
        )

    @staticmethod
    def supports(model: Llama, rows: int) -> bool:
        """Whether a step of `rows` decodes of this model can be fused: bfloat16 on a GPU, few rows, plain weights.

        And whether it pays, which it does for large weights in float8 in narrow tiles alone: otherwise separate kernels
        read those faster.
        """
        table, layers = model.embedding, _layers(model)
        if (
            not 1 <= rows <= MAX_ROWS
            or table.shape[1] > _MAX_WIDTH
            or not 0 < len(layers) == len(model.blocks)
        ):
            return False
        largest = layers[0].gate_up
        if largest.scale is not None and largest.values.numel() > _MAX_FLOAT8:
            narrow = gluon_narrow.runs_on(table.device, table.dtype)
            return all(isinstance(tile, NarrowTile) for tile in _tiles(layers[0], rows, narrow))
        return INTERPRETED or (on_gpu(table) and table.dtype == torch.bfloat16)

    @staticmethod
    def most_rows(model: Llama) -> int:
        """Of a step that can be fused and pays; 0: none."""
        return next((rows for rows in _MOST_ROWS if FusedDecode.supports(model, rows)), 0)

    @property
    def max_rows(self) -> int:
        return self._space.max_rows

    def products(self, rows: int) -> RowTiles | RowsTiles:
        """The tiles that steps of `rows` multiply with."""
        if rows not in self._products:
            self._products[rows] = self._measured(rows)
        return self._products[rows]

    def _measured(self, rows: int) -> RowTiles | RowsTiles:
        layer = self._layers[0]
        narrow = gluon_narrow.runs_on(self._embedding.device, self._embedding.dtype)
        tiles, largest = _tiles(layer, rows, narrow), layer.gate_up
        by_gemv = largest.scale is None and largest.values.numel() > _MAX_NARROW_ROW
        if rows == 1 and (by_gemv or not all(isinstance(tile, NarrowTile) for tile in tiles)):
            return RowTiles(*(gemv_tile(*weight.values.shape) for weight in _weights(layer)))
        return RowsTiles(*tiles)

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


def _weights(layer: FusedLayer) -> tuple[FusedWeight, ...]:
    return layer.qkv, layer.output, layer.gate_up, layer.down


def _tiles(layer: FusedLayer, rows: int, narrow: bool) -> list[ProductTile | NarrowTile]:
    """narrow: whether the device has narrow tiles; weights in float32 have none."""
    values = [weight.values for weight in _weights(layer)]
    narrow = narrow and all(one.element_size() <= 2 for one in values)
    return [product_tile(*one.shape, rows, narrow, one.element_size() == 1) for one in values]


def _layers(model: Llama) -> list[FusedLayer]:
    """Those that can be fused."""
    return [layer for layer in map(fused_layer, model.blocks) if layer is not None]
