"""config.json and generation_config.json of a Hugging Face folder, as a ModelConfig.

Fields that a file leaves out get the value that transformers gives them. No field ever runs code.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal_engine.config import GenerationDefaults, ModelConfig
from shoal_engine.errors import ModelLoadError
from shoal_engine.fields import Fields, read_json
from shoal_engine.hf_quantization import read_quantization
from shoal_engine.hf_rope import read_rope


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What an architecture implies without its config saying so. None = the config says, or it follows."""

    max_positions: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    qkv_bias: bool | None = None
    output_bias: bool | None = None
    qk_norm: bool = False
    sliding_window: int | None = None


_LLAMA = _Family(max_positions=2048, bos_token_id=1, eos_token_ids=(2,))
_MISTRAL = _Family(
    max_positions=131_072,
    num_kv_heads=8,
    bos_token_id=1,
    eos_token_ids=(2,),
    qkv_bias=False,
    output_bias=False,
    sliding_window=4096,
)
_QWEN2 = _Family(max_positions=32_768, num_kv_heads=32, qkv_bias=True, output_bias=False, sliding_window=4096)
_QWEN3 = _Family(max_positions=32_768, num_kv_heads=32, head_dim=128, qk_norm=True, sliding_window=4096)
_FAMILIES = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _MISTRAL,
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen3ForCausalLM": _QWEN3,
}
_ACTIVATIONS = frozenset({"silu"})


def read_hf_config(folder: Path) -> ModelConfig:
    """Raises ModelLoadError naming file and field when something is missing, broken or not supported."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelLoadError(
            f"{folder} has no config.json; MODEL is a .gguf file or a Hugging Face folder with config.json, "
            "tokenizer.json and *.safetensors"
        )
    fields = Fields(path, read_json(path))
    generation_path = folder / "generation_config.json"
    generation = read_json(generation_path) if generation_path.is_file() else {}
    values = _values(fields, Fields(generation_path, generation))
    try:
        return ModelConfig(**values)
    except ModelLoadError as error:
        raise ModelLoadError(f"{path}: {error}") from error


def _values(fields: Fields, generation: Fields) -> dict[str, Any]:
    architecture = _architecture(fields)
    family = _FAMILIES[architecture]
    num_layers = fields.integer("num_hidden_layers")
    num_heads = fields.integer("num_attention_heads")
    hidden_size = fields.integer("hidden_size")
    max_positions = fields.integer("max_position_embeddings", family.max_positions)
    attention_bias = fields.boolean("attention_bias", False)
    window, layers = _sliding(fields, family, architecture, num_layers)
    return {
        "architecture": architecture,
        "vocab_size": fields.integer("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": fields.integer("num_key_value_heads", family.num_kv_heads or num_heads),
        "head_dim": fields.integer("head_dim", family.head_dim or hidden_size // max(num_heads, 1)),
        "intermediate_size": fields.integer("intermediate_size"),
        "max_position_embeddings": max_positions,
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "rope": read_rope(fields, max_positions),
        "tie_embeddings": fields.boolean("tie_word_embeddings", False),
        "qkv_bias": attention_bias if family.qkv_bias is None else family.qkv_bias,
        "output_bias": attention_bias if family.output_bias is None else family.output_bias,
        "mlp_bias": architecture == "LlamaForCausalLM" and fields.boolean("mlp_bias", False),
        "qk_norm": family.qk_norm,
        "sliding_window": window,
        "sliding_layers": layers,
        "hidden_act": fields.choose("hidden_act", fields.text("hidden_act", "silu"), _ACTIVATIONS),
        "bos_token_id": fields.integer("bos_token_id", None)
        if fields.mentions("bos_token_id")
        else family.bos_token_id,
        "eos_token_ids": _eos_token_ids(fields, generation, family),
        "generation": _generation(generation),
        "torch_dtype": fields.text("dtype", fields.text("torch_dtype", "float32")),
        "fp8": read_quantization(fields),
    }


def _generation(generation: Fields) -> GenerationDefaults:
    """The recommended sampling in generation_config.json."""
    return GenerationDefaults(
        temperature=generation.number("temperature", None),
        top_p=generation.number("top_p", None),
        top_k=generation.integer("top_k", None),
        min_p=generation.number("min_p", None),
        repetition_penalty=generation.number("repetition_penalty", None),
        max_new_tokens=generation.integer("max_new_tokens", None),
    )


def _architecture(fields: Fields) -> str:
    """The first entry of `architectures` that is supported."""
    names = fields.texts("architectures")
    for name in names:
        if name in _FAMILIES:
            return name
    raise ModelLoadError(
        f"{fields.source}: architecture {', '.join(names) or '(none)'} is not supported; "
        f"supported: {', '.join(_FAMILIES)}. Serve a model that is one of these"
    )


def _eos_token_ids(fields: Fields, generation: Fields, family: _Family) -> tuple[int, ...]:
    for place in (generation, fields):
        if place.mentions("eos_token_id"):
            return place.integers("eos_token_id")
    return family.eos_token_ids


def _sliding(
    fields: Fields, family: _Family, architecture: str, num_layers: int
) -> tuple[int | None, Container[int] | None]:
    """The window and the layers it holds in (None = every layer)."""
    window = (
        fields.integer("sliding_window", None) if fields.mentions("sliding_window") else family.sliding_window
    )
    if architecture == "MistralForCausalLM":
        return window, None
    if family.sliding_window is None or not fields.boolean("use_sliding_window", False) or window is None:
        return None, None
    kinds = fields.texts("layer_types")
    if not kinds:
        return window, range(fields.integer("max_window_layers", 28), num_layers)
    if len(kinds) != num_layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise fields.refuse("layer_types", kinds, f"{num_layers} times sliding_attention or full_attention")
    return window, frozenset(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")
