"""The gated feed-forward of Llama-like models: down(silu(gate(x)) * up(x)), gate and up in one product."""

from __future__ import annotations

from torch import Tensor

from shoal_engine.kernels.interface import Kernels
from shoal_engine.layers.addend import Addend
from shoal_engine.layers.linear import Linear
from shoal_engine.layers.norm import RMSNorm


class GatedMLP:
    def __init__(self, gate_up_proj: Linear, down_proj: Linear, kernels: Kernels) -> None:
        self.gate_up_proj = gate_up_proj
        self.down_proj = down_proj
        self.kernels = kernels

    def __call__(self, x: Addend, residual: Tensor, norm: RMSNorm) -> Addend:
        """Of norm(residual += x), both [T, H] -> [T, H]."""
        return self.down_proj.gated(self.gate_up_proj.after_norm(x, residual, norm), self.kernels)
