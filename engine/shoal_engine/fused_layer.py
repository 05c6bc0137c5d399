"""A layer of a Llama-like model as the fused decode step reads it: operands only, the model's own tensors, no copies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal_engine.kernels.interface import AttentionScale, HeadInput
from shoal_engine.kernels.triton_fused_operands import FusedWeight, NormInput
from shoal_engine.layers.linear import Linear
from shoal_engine.layers.norm import RMSNorm
from shoal_engine.models.llama import Block, Llama


@dataclass(frozen=True, slots=True)
class FusedLayer:
    input_norm: NormInput
    qkv: FusedWeight
    heads: HeadInput
    scale: AttentionScale
    output: FusedWeight
    post_norm: NormInput
    gate_up: FusedWeight
    down: FusedWeight

    @property
    def weights(self) -> tuple[FusedWeight, ...]:
        return self.qkv, self.output, self.gate_up, self.down


def fused_layers(model: Llama) -> list[FusedLayer]:
    """Those that can be fused."""
    return [layer for layer in map(fused_layer, model.blocks) if layer is not None]


def fused_layer(block: Block) -> FusedLayer | None:
    """None where a weight lies in a layout, or attention takes a turn, that the fused kernels do not know."""
    attention, mlp = block.attention, block.mlp
    if (
        getattr(attention.scale, "softcap", None) is not None
        or getattr(attention.scale, "sinks", None) is not None
    ):
        return None
    qkv = _weight(attention.qkv_proj)
    output, gate_up, down = (
        _weight(linear) for linear in (attention.o_proj, mlp.gate_up_proj, mlp.down_proj)
    )
    if qkv is None or output is None or gate_up is None or down is None:
        return None
    if any(weight.bias is not None for weight in (output, gate_up, down)):
        return None
    return FusedLayer(
        input_norm=_norm(block.input_norm),
        qkv=qkv,
        heads=attention.heads,
        scale=attention.scale,
        output=output,
        post_norm=_norm(block.post_norm),
        gate_up=gate_up,
        down=down,
    )


def _norm(norm: RMSNorm) -> NormInput:
    return NormInput(norm.weight, norm.eps)


def _weight(linear: Linear) -> FusedWeight | None:
    """Of a product that keeps its matrix as it is: `weight` [N, K], with `scale` [N] where it is float8."""
    product = linear.product
    weight, scale = getattr(product, "weight", None), getattr(product, "scale", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_contiguous():
        return None
    if (weight.dtype == torch.float8_e4m3fn) != isinstance(scale, Tensor):
        return None
    if weight.dtype not in (torch.float8_e4m3fn, torch.bfloat16, torch.float32):
        return None
    return FusedWeight(weight, scale, getattr(product, "bias", None))
