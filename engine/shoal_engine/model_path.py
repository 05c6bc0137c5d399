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
    return _gguf_file(path) if path.is_dir() else path


def _gguf_file(folder: Path) -> Path:
    """The .gguf file of a folder that is for it alone, as `shoal fetch` leaves it; else the folder itself."""
    files = sorted(folder.glob("*.gguf"))
    if not files or any(folder.glob("*.safetensors")):
        return folder
    if len(files) > 1:
        raise ModelLoadError(
            f"{folder} holds {', '.join(file.name for file in files)}; name one of them behind the folder's name"
        )
    return files[0]
