"""The gated feed-forward of Llama-like models: down(silu(gate(x)) * up(x)), gate and up in one product."""

from __future__ import annotations

from torch import Tensor

from shoal_engine.kernels.interface import Kernels
from shoal_engine.layers.linear import Linear
from shoal_engine.layers.products import GatedProduct


class GatedMLP:
    def __init__(self, gate_up_proj: Linear, down_proj: Linear, kernels: Kernels) -> None:
        self.gate_up_proj = gate_up_proj
        self.down_proj = down_proj
        self.kernels = kernels
        self._gated = down_proj.product if isinstance(down_proj.product, GatedProduct) else None

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, H] -> [T, H]."""
        gate_up = self.gate_up_proj(x)
        if self._gated is not None:
            return self._gated.gated(gate_up)
        return self.down_proj(self.kernels.silu_mul(gate_up))
