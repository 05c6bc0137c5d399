"""Where MODEL is on this machine. Imports nothing heavy: the API process needs it as well as the engine."""

from __future__ import annotations

from pathlib import Path

from shoal_engine.errors import ModelLoadError


def local_path(model: str) -> Path:
    """The folder or file behind MODEL. Raises ModelLoadError for what is not on this machine."""
    scheme, separator, rest = model.partition("://")
    if separator and scheme != "file":
        raise ModelLoadError(
            f"{model}: the engine reads local files; download the model first and give its path"
        )
    path = Path(rest if separator else model)
    if not path.exists():
        raise ModelLoadError(f"{path} does not exist; MODEL is a Hugging Face folder or a .gguf file")
    return path
