"""Supported architectures: the table below is the whole list; an entry is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from shoal_engine.errors import ModelLoadError

if TYPE_CHECKING:
    from shoal_engine.models.llama import Llama

# What sets these four apart (biases, q/k norms, sliding window, head size) are facts in ModelConfig, not code.
MODELS = {
    "LlamaForCausalLM": "shoal_engine.models.llama:Llama",
    "MistralForCausalLM": "shoal_engine.models.llama:Llama",
    "Qwen2ForCausalLM": "shoal_engine.models.llama:Llama",
    "Qwen3ForCausalLM": "shoal_engine.models.llama:Llama",
}


def model_class(architecture: str) -> type[Llama]:
    """The class for a Hugging Face architecture name. Raises ModelLoadError that lists the known ones."""
    if architecture not in MODELS:
        raise ModelLoadError(
            f"architecture {architecture!r} is not supported; supported: {', '.join(sorted(MODELS))}"
        )
    module, _, name = MODELS[architecture].partition(":")
    return getattr(import_module(module), name)  # type: ignore[no-any-return]
