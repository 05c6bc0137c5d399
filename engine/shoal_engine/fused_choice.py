"""Which models' decodes are fused, how many rows at most, and in which tiles. Decides; `fused_decode.py` launches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shoal_engine.fused_layer import FusedLayer, fused_layers
from shoal_engine.kernels import gluon_narrow
from shoal_engine.kernels.fused_tiles import (
    MAX_ROWS,
    GemvTile,
    NarrowTile,
    ProductTile,
    gemv_tile,
    product_tile,
)
from shoal_engine.kernels.gpu import on_gpu
from shoal_engine.kernels.triton_fused_launch import INTERPRETED
from shoal_engine.models.llama import Llama

# Beyond 32 rows separate kernels with cuBLAS's products are faster, of some weights sooner (benchmarks/h200/fused_decode.py).
_MOST_ROWS = (32, 16, 8)
_MAX_WIDTH = 32768  # of the residual: both ends of a row are one program's
# Numbers of a bfloat16 matrix of which one row in narrow tiles is faster than by GEMV: on an H200 a step of the 0.6B takes
# 0.52 ms by the one and 0.58 by the other, a layer of the 8B, with 117 million in its largest, 114.6 us and 112.6.
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


def most_rows(model: Llama) -> int:
    """Of a step of decodes that can be fused and pays; 0: none."""
    return next((rows for rows in _MOST_ROWS if supports(model, rows)), 0)


def supports(model: Llama, rows: int) -> bool:
    """Whether a step of `rows` decodes of this model can be fused: bfloat16 on a GPU, few rows, plain weights of one kind.

    And whether it pays, which it does for large weights in float8 in narrow tiles alone: otherwise separate kernels read
    those faster.
    """
    table, layers = model.embedding, fused_layers(model)
    if not 1 <= rows <= MAX_ROWS or table.shape[1] > _MAX_WIDTH:
        return False
    if not 0 < len(layers) == len(model.blocks) or len({_kinds(layer) for layer in layers}) > 1:
        return False  # the first layer's tiles are those of all
    largest = layers[0].gate_up
    if largest.scale is not None and largest.values.numel() > _MAX_FLOAT8:
        return _all_narrow(_products(layers[0], rows, has_narrow(model)))
    return INTERPRETED or (on_gpu(table) and table.dtype == torch.bfloat16)


def has_narrow(model: Llama) -> bool:
    """Whether the device has narrow tiles for the model's rows."""
    return gluon_narrow.runs_on(model.embedding.device, model.embedding.dtype)


def tiles_for(layer: FusedLayer, rows: int, narrow: bool) -> RowTiles | RowsTiles:
    """narrow: whether the device has narrow tiles."""
    tiles, largest = _products(layer, rows, narrow), layer.gate_up
    by_gemv = largest.scale is None and largest.values.numel() > _MAX_NARROW_ROW
    if rows == 1 and (by_gemv or not _all_narrow(tiles)):
        return RowTiles(*(gemv_tile(*weight.values.shape) for weight in layer.weights))
    return RowsTiles(*tiles)


def reads_float16(layer: FusedLayer, rows: int, narrow: bool) -> bool:
    """Whether every product of steps of up to `rows` can read a sixteenth of x in float16: float8 weights, narrow tiles."""
    float8 = all(weight.scale is not None for weight in layer.weights)
    return float8 and _all_narrow(_products(layer, rows, narrow))


def _products(layer: FusedLayer, rows: int, narrow: bool) -> list[ProductTile | NarrowTile]:
    """Weights in float32 have no narrow tiles."""
    values = [weight.values for weight in layer.weights]
    narrow = narrow and all(one.element_size() <= 2 for one in values)
    return [product_tile(*one.shape, rows, narrow, one.element_size() == 1) for one in values]


def _all_narrow(tiles: Sequence[ProductTile | NarrowTile]) -> bool:
    return all(isinstance(tile, NarrowTile) for tile in tiles)


def _kinds(layer: FusedLayer) -> tuple[torch.dtype, ...]:
    return tuple(weight.values.dtype for weight in layer.weights)
