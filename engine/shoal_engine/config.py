"""What a checkpoint says about its model, as frozen values. No torch, no weights, no operator's options.

`hf_config.py` fills them from a Hugging Face folder, `gguf_config.py` from a GGUF file's metadata.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shoal_engine.errors import ModelLoadError

RopeType = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary positions. Which fields count depends on `type`; `freq_factors`, if given, replace its scaling.

    freq_factors: head_dim / 2 divisors, one per frequency, as GGUF stores the scaling of Llama 3.
    attention_factor: what cos and sin are multiplied by; None = the type's own rule.
    """

    theta: float = 10_000.0
    type: RopeType = "default"
    factor: float = 1.0
    original_max_position: int = 0  # llama3, yarn: positions before the context was extended
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: whether the corrected range is rounded to whole dimensions
    attention_factor: float | None = None  # yarn
    freq_factors: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """Sampling that the model's makers recommend for fields a request leaves out. None = they say nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


FP8_BLOCK = 128  # rows, and columns, of a block of a float8 matrix that has one scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Config:
    """Matrices are stored as float8 e4m3 with their scales; which ones and how they are scaled, the tensors say.

    round_input: whether products may round their input to float8 too, as the checkpoint was made for.
    """

    round_input: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and switches of a decoder. `architecture` is the Hugging Face class name in every file format.

    Raises ModelLoadError on construction when the sizes do not fit one another.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    norm_eps: float = 1e-6
    rope: RopeConfig = field(default_factory=RopeConfig)
    tie_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False  # of the attention's output projection
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each q and k head before the rotation
    sliding_window: int | None = None  # tokens a query sees, itself included
    sliding_layers: Container[int] | None = None  # None = the window holds in every layer
    hidden_act: str = "silu"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    torch_dtype: str = "bfloat16"  # the weights' type as published
    fp8: Fp8Config | None = None

    def __post_init__(self) -> None:
        for name, most in _LARGEST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ModelLoadError(f"the model's {name} is {getattr(self, name)}, not within 1 and {most}")
        if self.num_heads % self.num_kv_heads:
            raise ModelLoadError(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} key/value heads evenly"
            )
        if self.head_dim % 2:
            raise ModelLoadError(
                f"the model's head_dim is {self.head_dim}; rotary positions need an even number"
            )
        if self.bos_token_id is not None and not 0 <= self.bos_token_id < self.vocab_size:
            raise ModelLoadError(
                f"bos_token_id {self.bos_token_id} is outside the vocabulary of {self.vocab_size}"
            )
        _check_rope(self.rope, self.head_dim)

    def window(self, layer: int) -> int | None:
        """Tokens a query of this layer sees, itself included; None = all."""
        if self.sliding_layers is not None and layer not in self.sliding_layers:
            return None
        return self.sliding_window


# Far beyond every model, and small enough that tables made from a broken file's sizes do not fill the machine.
_LARGEST = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 18,
    "num_layers": 1 << 10,
    "num_heads": 1 << 12,
    "num_kv_heads": 1 << 12,
    "head_dim": 1 << 10,
    "intermediate_size": 1 << 20,
    "max_position_embeddings": 1 << 24,
}


def _check_rope(rope: RopeConfig, head_dim: int) -> None:
    for name in ("theta", "factor", "beta_fast", "beta_slow"):
        if getattr(rope, name) <= 0.0:
            raise ModelLoadError(f"the {name} of the rotary positions is {getattr(rope, name)}, not above 0")
    if rope.type in ("llama3", "yarn") and rope.original_max_position < 1:
        raise ModelLoadError(f"rotary positions of type {rope.type} need the original number of positions")
    if rope.type == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
        raise ModelLoadError(
            "the high_freq_factor of the rotary positions is not above their low_freq_factor"
        )
    if rope.freq_factors is not None and len(rope.freq_factors) != head_dim // 2:
        raise ModelLoadError(f"{len(rope.freq_factors)} rotary factors do not fit a head_dim of {head_dim}")


def yarn_attention(factor: float, weight: float = 1.0) -> float:
    """By how much YaRN scales q and k each (arXiv 2309.00071), weighted as DeepSeek does."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def read_config(path: Path | str) -> ModelConfig:
    """The config of a Hugging Face folder or a `.gguf` file. Raises ModelLoadError naming file and field."""
    path = Path(path)
    if path.is_dir():
        from shoal_engine.hf_config import read_hf_config

        return read_hf_config(path)
    from shoal_engine.gguf_config import read_gguf_config

    return read_gguf_config(path)
