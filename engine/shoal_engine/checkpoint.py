"""Open a model's weights, whatever their file format. Not how a model uses them: that is `weights.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from shoal_engine.config import ModelConfig
from shoal_engine.errors import ModelLoadError
from shoal_engine.quantization.fp8 import Fp8Weight


class Checkpoint(Protocol):
    """Tensors under their Hugging Face names, mapped from disk and read when asked for."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def total_bytes(self) -> int:
        """Of all tensors as they are stored."""

    def names(self) -> Sequence[str]: ...

    def stored_bytes(self, name: str) -> int:
        """Of one tensor as it is stored: the sum over all names is `total_bytes`, so progress can be told."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the numbers of one tensor, without reading them."""

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor on the CPU. dtype None = as stored, float32 for quantised types.

        It may be a view on the mapped file: copy before writing. Raises ModelLoadError for an unknown name.
        """

    def quantised(self, name: str) -> tuple[str, Tensor] | Fp8Weight | None:
        """A matrix as it is stored; None for plain numbers.

        GGUF: block type's name and uint8 [rows, bytes of a row]. float8: with its scales, on the CPU.
        """


def open_checkpoint(path: Path | str) -> Checkpoint:
    """A Hugging Face folder or a .gguf file. Raises ModelLoadError that says which file and what to do."""
    path = Path(path)
    if path.is_dir():
        from shoal_engine.safetensors_checkpoint import SafetensorsCheckpoint

        return SafetensorsCheckpoint(path)
    if path.suffix != ".gguf" and path.exists():
        raise ModelLoadError(
            f"{path} is no .gguf file and no folder; MODEL is a Hugging Face folder or a .gguf file"
        )
    from shoal_engine.gguf_checkpoint import GgufCheckpoint

    return GgufCheckpoint(path)
