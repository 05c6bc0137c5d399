"""`quantization_config` of a Hugging Face folder, as a Fp8Config. Reads no tensors: which ones are float8, their types say.

Static scales of activations (`input_scale`, `activation_scale`) are not used: activations are scaled by token as they come,
which fits each better. Lists of layers left out (`ignore`, `modules_to_not_convert`) say what the types say again.
"""

from __future__ import annotations

from typing import Any

from shoal_engine.config import FP8_BLOCK, Fp8Config
from shoal_engine.fields import Fields

_BLOCK_SHAPE = [FP8_BLOCK, FP8_BLOCK]
_FORMATS = frozenset({"float-quantized", "naive-quantized"})
_STRATEGIES = frozenset({"tensor", "channel", "block"})
_INPUT_STRATEGIES = frozenset({"tensor", "token", "group"})


def read_quantization(fields: Fields) -> Fp8Config | None:
    """None when the checkpoint is not quantised. Raises ModelLoadError for methods that this engine cannot read."""
    if fields.any("quantization_config") is None:
        return None
    inside = fields.inside("quantization_config")
    method = inside.text("quant_method", "of unknown kind")
    if method == "fp8":
        return _finegrained(inside)
    if method == "compressed-tensors":
        return _compressed_tensors(inside)
    raise inside.refuse(
        "quant_method",
        method,
        "fp8 or compressed-tensors; serve another checkpoint or a GGUF file of this model",
    )


def _finegrained(fields: Fields) -> Fp8Config:
    """Of transformers, AutoFP8 and the DeepSeek and Qwen releases."""
    fields.choose("fmt", fields.text("fmt", "e4m3"), ("e4m3", "float8_e4m3fn"))
    block = fields.any("weight_block_size")
    if block is not None and block != _BLOCK_SHAPE:
        raise fields.refuse("weight_block_size", block, f"{_BLOCK_SHAPE} or null")
    return Fp8Config()


def _compressed_tensors(fields: Fields) -> Fp8Config:
    """Of llm-compressor. All groups must be float8 weights, and agree on whether activations are rounded."""
    fields.choose("format", fields.text("format"), _FORMATS)
    sparsity = fields.inside("sparsity_config")
    sparsity.choose("format", sparsity.text("format", "dense"), ("dense",))
    groups = fields.inside("config_groups")
    rounds = [_group(groups.inside(name)) for name in groups.names()]
    if not rounds or len(set(rounds)) > 1:
        raise fields.refuse(
            "config_groups", list(groups.names()), "groups that all have input_activations, or all have none"
        )
    return Fp8Config(round_input=rounds[0])


def _group(fields: Fields) -> bool:
    """Whether the inputs of a group's products are rounded too."""
    weights = fields.inside("weights")
    _check_float8(weights, _STRATEGIES)
    shape = weights.any("block_structure")
    if shape is not None and shape != _BLOCK_SHAPE:
        raise weights.refuse("block_structure", shape, f"{_BLOCK_SHAPE} or null")
    if fields.any("input_activations") is None:
        return False
    _check_float8(fields.inside("input_activations"), _INPUT_STRATEGIES)
    return True


def _check_float8(fields: Fields, strategies: frozenset[str]) -> None:
    expected: tuple[tuple[str, Any, str], ...] = (
        ("num_bits", 8, "8; serve a float8 checkpoint or a GGUF file of this model"),
        ("type", "float", "float; serve a float8 checkpoint or a GGUF file of this model"),
    )
    for name, wanted, text in expected:
        if fields.any(name) != wanted:
            raise fields.refuse(name, fields.any(name), text)
    if not fields.boolean("symmetric", True):
        raise fields.refuse("symmetric", False, "true")
    fields.choose("strategy", fields.text("strategy"), strategies)
