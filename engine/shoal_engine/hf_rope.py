"""Rotary positions in a config.json: `rope_theta` with `rope_scaling`, or the one `rope_parameters` of transformers 5."""

from __future__ import annotations

from typing import get_args

from shoal_engine.config import RopeConfig, RopeType, yarn_attention
from shoal_engine.fields import Fields


def read_rope(fields: Fields, max_positions: int) -> RopeConfig:
    """`fields` of a config.json. Raises ModelLoadError naming the field and what is supported."""
    scaling = fields.inside("rope_scaling" if fields.any("rope_scaling") else "rope_parameters")
    kind = scaling.choose(
        "rope_type", scaling.text("rope_type", scaling.text("type", "default")), get_args(RopeType)
    )
    share = scaling.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    if share != 1.0:
        raise fields.refuse(
            "partial_rotary_factor", share, "1.0: only whole heads are rotated by this engine"
        )
    theta = scaling.number("rope_theta", fields.number("rope_theta", 10_000.0))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, type="linear", factor=scaling.number("factor"))
    original = fields.integer(
        "original_max_position_embeddings", scaling.integer("original_max_position_embeddings", max_positions)
    )
    if kind == "llama3":
        return RopeConfig(
            theta=theta,
            type="llama3",
            factor=scaling.number("factor"),
            original_max_position=original,
            low_freq_factor=scaling.number("low_freq_factor"),
            high_freq_factor=scaling.number("high_freq_factor"),
        )
    return _yarn(scaling, theta, original, max_positions)


def _yarn(scaling: Fields, theta: float, original: int, max_positions: int) -> RopeConfig:
    factor = scaling.number("factor", max_positions / max(original, 1))
    attention_factor = scaling.number("attention_factor", None)
    mscale, mscale_all_dim = scaling.number("mscale", 0.0), scaling.number("mscale_all_dim", 0.0)
    if attention_factor is None and mscale and mscale_all_dim:
        attention_factor = yarn_attention(factor, mscale) / yarn_attention(factor, mscale_all_dim)
    return RopeConfig(
        theta=theta,
        type="yarn",
        factor=factor,
        original_max_position=original,
        beta_fast=scaling.number("beta_fast", 32.0) or 32.0,
        beta_slow=scaling.number("beta_slow", 1.0) or 1.0,
        truncate=scaling.boolean("truncate", True),
        attention_factor=attention_factor,
    )
