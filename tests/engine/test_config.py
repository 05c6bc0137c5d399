"""A checkpoint's config means what transformers takes it to mean, and what we cannot serve is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shoal_engine.config import GenerationDefaults, ModelConfig, RopeConfig, read_config
from shoal_engine.errors import ModelLoadError
from shoal_engine.layers.rotary import attention_factor, inverse_frequencies
from tests.builders import smollm2
from tests.engine.gguf_files import (
    BPE_METADATA,
    BPE_TOKENS,
    head_dim,
    model_metadata,
    model_tensors,
    write_gguf,
    write_model,
)

SIZES = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA, MISTRAL = "LlamaForCausalLM", "MistralForCausalLM"
QWEN2, QWEN3 = "Qwen2ForCausalLM", "Qwen3ForCausalLM"
MODEL_TYPES = {LLAMA: "llama", MISTRAL: "mistral", QWEN2: "qwen2", QWEN3: "qwen3"}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


def write_folder(
    folder: Path, architecture: str, generation: dict[str, Any] | None = None, **fields: Any
) -> Path:
    config = {
        "architectures": [architecture],
        "model_type": MODEL_TYPES.get(architecture, "?"),
        **SIZES,
        **fields,
    }
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


# Fields of config.json beside the sizes: both spellings of everything, present, absent and null.
CONFIGS = {
    "llama": (LLAMA, {}),
    "llama biased": (LLAMA, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama 3.1": (
        LLAMA,
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE, "eos_token_id": [5, 7], "bos_token_id": 3},
    ),
    "llama 3.1, transformers 5": (LLAMA, {"rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500000.0}}),
    "llama linear": (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.5}}),
    "llama no special tokens": (LLAMA, {"bos_token_id": None, "eos_token_id": None}),
    "llama more heads than hidden": (LLAMA, {"head_dim": 32, "num_key_value_heads": None}),
    "llama, both spellings": (LLAMA, {"rope_parameters": None, "rope_scaling": LLAMA3_ROPE}),
    "llama, not quantised": (LLAMA, {"quantization_config": None}),
    "mistral 0.1": (MISTRAL, {"sliding_window": 8, "rms_norm_eps": 1e-5}),
    "mistral 0.3": (MISTRAL, {"sliding_window": None, "rope_theta": 1e6, "head_dim": 24}),
    "mistral without a word on windows": (MISTRAL, {}),
    "qwen2": (QWEN2, {"use_sliding_window": False, "sliding_window": 9, "max_window_layers": 2}),
    "qwen2 sliding": (QWEN2, {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 3}),
    "qwen2 layer types": (
        QWEN2,
        {
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
    ),
    "qwen2 yarn": (QWEN2, {"rope_theta": 1e6, "rope_scaling": YARN, "max_position_embeddings": 2048}),
    "qwen2 yarn without factor": (
        QWEN2,
        {"rope_scaling": {**YARN, "factor": None}, "max_position_embeddings": 4096},
    ),
    "qwen2 yarn, all its fields": (
        QWEN2,
        {
            "rope_scaling": {
                **YARN,
                "beta_fast": 16,
                "beta_slow": 2,
                "attention_factor": 1.25,
                "truncate": False,
            },
            "max_position_embeddings": 2048,
        },
    ),
    "qwen2 yarn with mscale": (QWEN2, {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}),
    "qwen3": (QWEN3, {"rope_theta": 1e6, "head_dim": 32, "attention_bias": True}),
    "qwen3 without head_dim": (QWEN3, {"num_attention_heads": 2}),
}


@pytest.mark.parametrize(("architecture", "fields"), CONFIGS.values(), ids=list(CONFIGS))
def test_a_folder_means_what_transformers_reads(
    tmp_path: Path, architecture: str, fields: dict[str, Any]
) -> None:
    ours = read_config(write_folder(tmp_path, architecture, **fields))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    eos = theirs.eos_token_id
    assert ours.vocab_size == theirs.vocab_size
    assert ours.hidden_size == theirs.hidden_size
    assert ours.num_layers == theirs.num_hidden_layers
    assert ours.num_heads == theirs.num_attention_heads
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (
        getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    )
    assert ours.intermediate_size == theirs.intermediate_size
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert ours.mlp_bias == getattr(theirs, "mlp_bias", False)
    assert ours.hidden_act == theirs.hidden_act
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.eos_token_ids == (() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,))
    assert [ours.window(layer) for layer in range(ours.num_layers)] == windows(theirs)
    assert_same_rotation(ours, theirs)
    assert_same_weights(ours, theirs)


def windows(theirs: Any) -> list[int | None]:
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * theirs.num_hidden_layers
    window = getattr(theirs, "sliding_window", None)
    return [window if kind == "sliding_attention" else None for kind in kinds]


def assert_same_rotation(ours: ModelConfig, theirs: Any) -> None:
    kind = theirs.rope_parameters["rope_type"]
    if kind == "default":
        assert ours.rope == RopeConfig(theta=theirs.rope_parameters["rope_theta"])
        return
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](theirs)
    assert ours.rope.type == kind
    assert torch.allclose(inverse_frequencies(ours.rope, ours.head_dim).float(), frequencies, rtol=1e-5)
    assert attention_factor(ours.rope) == pytest.approx(scale)


def assert_same_weights(ours: ModelConfig, theirs: Any) -> None:
    """Biases and head norms are where transformers' module has them."""
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(theirs)
    names = {name for name, _ in module.named_parameters() if ".layers.0." in name}
    prefix = "model.layers.0."
    assert ours.qkv_bias == (f"{prefix}self_attn.q_proj.bias" in names)
    assert ours.output_bias == (f"{prefix}self_attn.o_proj.bias" in names)
    assert ours.mlp_bias == (f"{prefix}mlp.up_proj.bias" in names)
    assert ours.qk_norm == (f"{prefix}self_attn.q_norm.weight" in names)


@pytest.mark.parametrize("config_class", ["LlamaConfig", "MistralConfig", "Qwen2Config", "Qwen3Config"])
def test_a_folder_that_transformers_wrote_reads_back(tmp_path: Path, config_class: str) -> None:
    written = getattr(transformers, config_class)(**SIZES)
    written.architectures = [config_class.replace("Config", "ForCausalLM")]
    written.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    assert (config.num_layers, config.head_dim) == (4, getattr(written, "head_dim", 16))


def test_generation_config_gives_the_end_tokens_and_the_recommended_sampling(tmp_path: Path) -> None:
    generation = {
        "eos_token_id": [4, 6],
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
    }
    config = read_config(write_folder(tmp_path, LLAMA, generation, eos_token_id=2))
    assert config.eos_token_ids == (4, 6)
    assert config.generation == GenerationDefaults(
        temperature=0.6, top_k=20, top_p=0.9, repetition_penalty=1.1
    )


def test_the_published_type_is_read_in_both_spellings(tmp_path: Path) -> None:
    assert read_config(write_folder(tmp_path, LLAMA, torch_dtype="float16")).torch_dtype == "float16"
    assert read_config(write_folder(tmp_path, LLAMA, dtype="bfloat16")).torch_dtype == "bfloat16"


REFUSED = {
    "another architecture": (
        {"architectures": ["GPT2LMHeadModel"]},
        "GPT2LMHeadModel.*supported: LlamaForCausalLM",
    ),
    "no architecture": ({"architectures": None}, "architecture \\(none\\)"),
    "dynamic rope": (
        {"rope_scaling": {"type": "dynamic", "factor": 2}},
        "'rope_type' is 'dynamic'.*llama3.*yarn",
    ),
    "a rope per layer type": (
        {"rope_parameters": {"rope_type": {"a": 1}}},
        "'rope_type' is .*expected a text",
    ),
    "partial rotation": ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is 0.5"),
    "llama3 without its factors": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8}},
        "low_freq_factor.*missing",
    ),
    "another activation": ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu', expected one of silu"),
    "a quantised checkpoint": ({"quantization_config": {"quant_method": "awq"}}, "'awq'.*GGUF"),
    "a missing size": ({"hidden_size": None}, "'hidden_size' is missing"),
    "a size of text": ({"hidden_size": "64"}, "'hidden_size' is '64', expected a whole number"),
    "a size of truth": ({"num_hidden_layers": True}, "'num_hidden_layers' is True"),
    "no layers": ({"num_hidden_layers": 0}, "num_layers is 0"),
    "a number beyond 64 bits": ({"max_position_embeddings": 10**400}, "'max_position_embeddings' is 1000"),
    "absurd positions": ({"max_position_embeddings": 1 << 40}, "max_position_embeddings is 1099511627776"),
    "uneven heads": ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
    "odd heads": ({"head_dim": 15}, "head_dim is 15"),
    "BOS outside": ({"bos_token_id": 99}, "bos_token_id 99 is outside"),
    "a theta of nothing": ({"rope_theta": 0}, "theta of the rotary positions is 0"),
    "a number beyond floats": ({"rope_theta": 10**400}, "expected a finite number"),
    "a factor below nothing": ({"rope_scaling": {"type": "linear", "factor": -2}}, "factor .* is -2"),
    "llama3 bands swapped": (
        {"rope_scaling": {**LLAMA3_ROPE, "low_freq_factor": 4.0}},
        "not above their low_freq_factor",
    ),
    "an infinite theta": ({"rope_theta": float("inf")}, "'rope_theta' is inf"),
    "a wrong number of layer types": (
        {"architectures": [QWEN2], "use_sliding_window": True, "layer_types": ["full_attention"]},
        "'layer_types'.*4 times",
    ),
}


@pytest.mark.parametrize(("fields", "reason"), REFUSED.values(), ids=list(REFUSED))
def test_a_refusal_names_file_and_field(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason) as refusal:
        read_config(write_folder(tmp_path, LLAMA, **fields))
    assert str(tmp_path / "config.json") in str(refusal.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '"a"', "[" * 100_000, '{"a": \x00}'])
def test_broken_json_is_refused_with_its_path(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"config\.json.*download it again"):
        read_config(tmp_path)


def test_a_folder_without_a_config_is_refused_with_what_a_model_is(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no config\.json; MODEL is"):
        read_config(tmp_path)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_a_gguf_file_means_what_transformers_reads(tmp_path: Path, arch: str) -> None:
    path = write_model(tmp_path / "m.gguf", arch, tied=arch != "llama", **{"rope.freq_base": 5000.0})
    ours = read_config(path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file=path.name)
    assert ours.architecture == theirs.architectures[0] if theirs.architectures else ours.architecture
    assert ours.vocab_size == theirs.vocab_size == len(BPE_TOKENS)
    assert ours.hidden_size == theirs.hidden_size
    assert (ours.num_layers, ours.num_heads, ours.num_kv_heads) == (2, 4, 2)
    assert ours.head_dim == head_dim(arch)
    assert ours.intermediate_size == theirs.intermediate_size
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.rope == RopeConfig(theta=5000.0)
    assert ours.tie_embeddings == (arch != "llama")
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.eos_token_ids == (theirs.eos_token_id,)
    assert (ours.qkv_bias, ours.output_bias, ours.qk_norm) == (arch == "qwen2", False, arch == "qwen3")


def test_the_packaged_model_is_read() -> None:
    config = read_config(smollm2())
    assert (config.architecture, config.vocab_size, config.head_dim) == (LLAMA, 49_152, 64)
    assert config.rope == RopeConfig(theta=100_000.0)
    assert config.tie_embeddings
    # <|im_end|> by its id, <|endoftext|> by its name.
    assert config.eos_token_ids == (2, 0)


def read_changed(folder: Path, extra_tensors: dict[str, Any] | None = None, **changes: Any) -> ModelConfig:
    metadata = model_metadata("llama", **changes) | BPE_METADATA
    return read_config(
        write_gguf(folder / "m.gguf", metadata, model_tensors("llama") | (extra_tensors or {}))
    )


def test_a_gguf_file_scales_rotation_by_metadata(tmp_path: Path) -> None:
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
    assert read_changed(tmp_path, **linear).rope == RopeConfig(type="linear", factor=2.0)
    assert read_changed(tmp_path, **{"rope.scale_linear": 2.0}).rope.factor == 2.0
    assert read_changed(tmp_path, **(linear | {"rope.scaling.type": "none"})).rope == RopeConfig()
    assert read_changed(tmp_path, **(linear | {"rope.scaling.factor": 0.0})).rope == RopeConfig()
    yarn = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 16,
    }
    rope = read_changed(tmp_path, **yarn).rope
    plain = RopeConfig(type="yarn", factor=4.0, original_max_position=16)
    assert replace(rope, attention_factor=None) == plain
    assert attention_factor(rope) == pytest.approx(attention_factor(plain))


def test_a_gguf_file_may_carry_llama_3_scaling_as_a_tensor(tmp_path: Path) -> None:
    divisors = np.array([1.0, 1.0, 2.5, 8.0], np.float32)
    rope = read_changed(tmp_path, {"rope_freqs.weight": divisors}).rope
    assert rope.freq_factors == (1.0, 1.0, 2.5, 8.0)
    with pytest.raises(ModelLoadError, match="3 rotary factors do not fit a head_dim of 8"):
        read_changed(tmp_path, {"rope_freqs.weight": divisors[:3]})
    with pytest.raises(ModelLoadError, match=r"rope_freqs\.weight"):
        read_changed(tmp_path, {"rope_freqs.weight": -divisors})


def test_a_gguf_file_recommends_sampling(tmp_path: Path) -> None:
    sampling = {
        "general.sampling.temp": 0.5,
        "general.sampling.top_k": 7,
        "general.sampling.penalty_repeat": 1.5,
    }
    metadata = model_metadata("llama") | BPE_METADATA | sampling
    config = read_config(write_gguf(tmp_path / "m.gguf", metadata, model_tensors("llama")))
    assert config.generation == GenerationDefaults(temperature=0.5, top_k=7, repetition_penalty=1.5)


REFUSED_GGUF = {
    "a mixture of experts": ({"expert_count": 8}, "expert_count"),
    "a partly rotated head": ({"rope.dimension_count": 4}, r"rope\.dimension_count.*8, the size of a head"),
    "values of another size": ({"attention.value_length": 16}, "value_length"),
    "another scaling": ({"rope.scaling.type": "longrope"}, "longrope"),
    "a missing size": ({"block_count": None}, r"'llama\.block_count' is missing"),
    "heads per layer": ({"attention.head_count": [4, 4]}, "whole number"),
}


@pytest.mark.parametrize(("changes", "reason"), REFUSED_GGUF.values(), ids=list(REFUSED_GGUF))
def test_a_refused_gguf_file_is_named_with_its_field(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelLoadError, match=reason) as refusal:
        read_changed(tmp_path, **changes)
    assert "m.gguf" in str(refusal.value)


def test_a_gguf_file_of_another_architecture_is_refused_with_those_supported(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, {}, arch="mamba")
    with pytest.raises(ModelLoadError, match="'mamba', expected one of llama, qwen2, qwen3"):
        read_config(path)
