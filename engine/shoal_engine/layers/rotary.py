"""Rotary position tables: cos and sin of every position, computed once in float64. The rotation itself is a kernel.

Formulas: RoFormer (arXiv 2104.09864); `llama3` as published with Llama 3.1; `yarn` arXiv 2309.00071; `linear` position
interpolation arXiv 2306.15595.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shoal_engine.config import RopeConfig


def rope_table(rope: RopeConfig, head_dim: int, max_positions: int) -> Tensor:
    """[max_positions, head_dim] float32: cos in the first half, sin in the second, times the attention factor."""
    frequencies = inverse_frequencies(rope, head_dim)
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float64), frequencies)
    table = torch.cat((angles.cos(), angles.sin()), dim=-1) * attention_factor(rope)
    return table.float().contiguous()


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """[head_dim / 2] float64 radians per position."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    plain = rope.theta**-exponents
    if rope.freq_factors is not None:  # GGUF stores Llama 3's scaling as one divisor per frequency
        return plain / torch.tensor(rope.freq_factors, dtype=torch.float64)
    return _SCALINGS[rope.type](plain, rope, head_dim)


def attention_factor(rope: RopeConfig) -> float:
    """YaRN scales q and k each by 0.1 ln(factor) + 1 unless the checkpoint gives its own factor."""
    if rope.type != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    return 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1.0 else 1.0


def _default(plain: Tensor, rope: RopeConfig, head_dim: int) -> Tensor:
    return plain


def _linear(plain: Tensor, rope: RopeConfig, head_dim: int) -> Tensor:
    return plain / rope.factor


def _llama3(plain: Tensor, rope: RopeConfig, head_dim: int) -> Tensor:
    """Long wavelengths are divided by factor, short ones kept, those between blended linearly."""
    turns = rope.original_max_position * plain / (2 * math.pi)  # turns within the original context
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = smooth.clamp(0.0, 1.0)
    return (1.0 - smooth) * plain / rope.factor + smooth * plain


def _yarn(plain: Tensor, rope: RopeConfig, head_dim: int) -> Tensor:
    def dimension(turns: float) -> float:
        return (
            head_dim
            * math.log(rope.original_max_position / (turns * 2 * math.pi))
            / (2 * math.log(rope.theta))
        )

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (torch.arange(head_dim // 2, dtype=torch.float64) - low) / max(high - low, 0.001)
    interpolate = ramp.clamp(0.0, 1.0)
    return interpolate * plain / rope.factor + (1.0 - interpolate) * plain


_SCALINGS = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
