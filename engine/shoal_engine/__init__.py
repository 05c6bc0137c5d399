"""Shoal's engine: paged attention, continuous batching and prefix caching. Knows nothing of Kubernetes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal_engine.llm import LLM as LLM
    from shoal_engine.sampling_params import SamplingParams as SamplingParams

__all__ = ["LLM", "SamplingParams"]

_HOMES = {"LLM": "shoal_engine.llm", "SamplingParams": "shoal_engine.sampling_params"}


def __getattr__(name: str) -> Any:
    """Import on use: `import shoal_engine` must not cost a torch import."""
    if name not in _HOMES:
        raise AttributeError(f"module 'shoal_engine' has no attribute {name!r}")
    import os
    from importlib import import_module

    from shoal_engine.host_runtime import prepare

    prepare(os.environ)
    return getattr(import_module(_HOMES[name]), name)
