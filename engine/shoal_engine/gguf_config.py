"""A GGUF file's metadata as a ModelConfig. How its tensors are named and decoded: `gguf_checkpoint.py`.

What the metadata leaves out (biases, tied output, vocabulary size) is told by which tensors the file holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shoal_engine.config import GenerationDefaults, ModelConfig, RopeConfig, yarn_attention
from shoal_engine.errors import ModelLoadError
from shoal_engine.fields import Fields
from shoal_engine.gguf import Gguf, open_gguf

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
CONTROL_TOKEN = 3  # in tokenizer.ggml.token_type

# Chat models end their turn with one of these, and many files name only the end of the document as EOS.
_END_OF_TURN = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>"}
)
_ROPE_SCALINGS = ("none", "linear", "yarn")


def read_gguf_config(path: Path) -> ModelConfig:
    """Raises ModelLoadError naming file and field when something is missing, broken or not supported."""
    if not path.exists():
        raise ModelLoadError(f"{path} does not exist; MODEL is a Hugging Face folder or a .gguf file")
    return gguf_config(open_gguf(path))


def gguf_config(gguf: Gguf) -> ModelConfig:
    """As `read_gguf_config`, of a file that is open already."""
    values = _values(gguf)
    try:
        return ModelConfig(**values)
    except ModelLoadError as error:
        raise ModelLoadError(f"{gguf.path}: {error}") from error


def _values(gguf: Gguf) -> dict[str, Any]:
    every = Fields(gguf.path, gguf.metadata)
    arch = every.choose("general.architecture", every.text("general.architecture"), ARCHITECTURES)
    fields = Fields(gguf.path, gguf.metadata, prefix=f"{arch}.")
    if fields.integer("expert_count", 0) > 0:
        raise fields.refuse(
            "expert_count", fields.integer("expert_count"), "0: mixtures of experts are not supported"
        )
    if "token_embd.weight" not in gguf.tensors:
        raise ModelLoadError(
            f"{gguf.path} has no tensor 'token_embd.weight'; it is no complete language model"
        )
    hidden_size, num_heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    head_dim = _head_dim(fields, hidden_size // max(num_heads, 1))
    max_positions = fields.integer("context_length")
    vocab_size = gguf.tensors["token_embd.weight"].shape[0]
    return {
        "architecture": ARCHITECTURES[arch],
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_layers": fields.integer("block_count"),
        "num_heads": num_heads,
        "num_kv_heads": fields.integer("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "intermediate_size": fields.integer("feed_forward_length"),
        "max_position_embeddings": max_positions,
        "norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "rope": _rope(gguf, fields, max_positions),
        "tie_embeddings": "output.weight" not in gguf.tensors,
        "qkv_bias": "blk.0.attn_q.bias" in gguf.tensors,
        "output_bias": "blk.0.attn_output.bias" in gguf.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in gguf.tensors,
        "qk_norm": "blk.0.attn_q_norm.weight" in gguf.tensors,
        "sliding_window": fields.integer("attention.sliding_window", 0) or None,
        "bos_token_id": special_token_id(every, "bos_token_id", vocab_size),
        "eos_token_ids": _eos_token_ids(every, gguf.metadata, vocab_size),
        "generation": _generation(Fields(gguf.path, gguf.metadata, prefix="general.sampling.")),
    }


def _head_dim(fields: Fields, derived: int) -> int:
    head_dim = fields.integer("attention.key_length", derived)
    for name in ("attention.value_length", "rope.dimension_count"):
        if fields.integer(name, head_dim) != head_dim:
            raise fields.refuse(name, fields.integer(name), f"{head_dim}, the size of a head")
    return head_dim


def _rope(gguf: Gguf, fields: Fields, max_positions: int) -> RopeConfig:
    theta = fields.number("rope.freq_base", 10_000.0)
    kind = fields.choose("rope.scaling.type", fields.text("rope.scaling.type", "linear"), _ROPE_SCALINGS)
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 1.0)) or 1.0
    divisors = _rope_divisors(gguf)
    if kind == "none" or factor == 1.0:
        return RopeConfig(theta=theta, freq_factors=divisors)
    if divisors is not None:
        raise fields.refuse(
            "rope.scaling.factor", factor, "1.0: the file's rope_freqs.weight is a scaling already"
        )
    if kind == "linear":
        return RopeConfig(theta=theta, type="linear", factor=factor)
    # llama.cpp multiplies YaRN's own growth of attention by this; the attention_factor of others replaces it.
    extra = fields.number("rope.scaling.attn_factor", 1.0)
    return RopeConfig(
        theta=theta,
        type="yarn",
        factor=factor,
        original_max_position=fields.integer("rope.scaling.original_context_length", max_positions),
        beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=extra * yarn_attention(factor),
    )


def _rope_divisors(gguf: Gguf) -> tuple[float, ...] | None:
    """Llama 3's scaling, one divisor per frequency."""
    tensor = gguf.tensors.get("rope_freqs.weight")
    if tensor is None:
        return None
    divisors = tensor.data.view("<f4") if tensor.block_type.name == "F32" else np.zeros(1)
    if not (np.isfinite(divisors).all() and (divisors > 0).all()):
        raise ModelLoadError(
            f"{gguf.path}: tensor 'rope_freqs.weight' holds no positive F32 numbers; download it again"
        )
    return tuple(divisors.tolist())


def special_token_id(every: Fields, name: str, vocab_size: int) -> int | None:
    """The id under tokenizer.ggml; None also for one outside the vocabulary, as writers put for "none"."""
    token_id = every.integer(f"tokenizer.ggml.{name}", None)
    return token_id if token_id is not None and 0 <= token_id < vocab_size else None


def _eos_token_ids(every: Fields, metadata: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    named = (special_token_id(every, f"{kind}_token_id", vocab_size) for kind in ("eos", "eot", "eom"))
    tokens, kinds = metadata.get("tokenizer.ggml.tokens", ()), metadata.get("tokenizer.ggml.token_type", ())
    spelt = (
        index
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
        if kind == CONTROL_TOKEN and token in _END_OF_TURN
    )
    return tuple(dict.fromkeys(index for index in (*named, *spelt) if index is not None))


def _generation(sampling: Fields) -> GenerationDefaults:
    return GenerationDefaults(
        temperature=sampling.number("temp", None),
        top_p=sampling.number("top_p", None),
        top_k=sampling.integer("top_k", None),
        min_p=sampling.number("min_p", None),
        repetition_penalty=sampling.number("penalty_repeat", None),
    )
