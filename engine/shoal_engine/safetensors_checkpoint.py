"""The *.safetensors files of a Hugging Face folder as one checkpoint. Reads no other format of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shoal_engine.errors import ModelLoadError
from shoal_engine.fields import Fields, read_json
from shoal_engine.hf_config import read_hf_config
from shoal_engine.quantization.fp8 import BLOCK, Fp8Weight, read_scaled

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
_FLOAT8 = "F8_E4M3"
# Beside a float8 `weight`; whatever the name, what its numbers are multiplied by.
_SCALE_SUFFIXES = ("_scale", "_scale_inv")


class SafetensorsCheckpoint:
    """See `checkpoint.Checkpoint`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.config = read_hf_config(folder)
        self._files = _open_files(folder)
        self._sizes = {name: self._size(name) for name in self._files}
        self.total_bytes = sum(self._sizes.values())

    def names(self) -> Sequence[str]:
        return tuple(self._files)

    def stored_bytes(self, name: str) -> int:
        self._file(name)
        return self._sizes[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file(name).get_slice(name).get_shape())

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        scaled = self.quantised(name)
        if scaled is not None:
            return scaled.dequantise(dtype or torch.float32)
        tensor: Tensor = self._file(name).get_tensor(name)
        return tensor if dtype is None else tensor.to(dtype)

    def quantised(self, name: str) -> Fp8Weight | None:
        if self.config.fp8 is None or self._file(name).get_slice(name).get_dtype() != _FLOAT8:
            return None
        scale_name = next((name + end for end in _SCALE_SUFFIXES if name + end in self._files), None)
        if scale_name is None:
            raise ModelLoadError(
                f"{self._folder}: {name!r} is float8 but has no scale {name + _SCALE_SUFFIXES[0]!r} or "
                f"{name + _SCALE_SUFFIXES[1]!r}; download it again"
            )
        values: Tensor = self._file(name).get_tensor(name)
        scale: Tensor = self._file(scale_name).get_tensor(scale_name)
        scaled = read_scaled(values, scale, self.config.fp8.round_input) if values.dim() == 2 else None
        if scaled is None:
            raise ModelLoadError(
                f"{self._folder}: {scale_name!r} has shape {list(scale.shape)}, which is no scale of {name!r} "
                f"{list(values.shape)}: not of the matrix, its rows or blocks of {BLOCK} x {BLOCK}; download both again"
            )
        return scaled

    def _file(self, name: str) -> Any:
        if name not in self._files:
            raise ModelLoadError(
                f"{self._folder} has no tensor {name!r} in its safetensors; download it again"
            )
        return self._files[name]

    def _size(self, name: str) -> int:
        part = self._files[name].get_slice(name)
        dtype = part.get_dtype()
        if dtype == _FLOAT8 and self.config.fp8 is not None:
            return math.prod(part.get_shape())
        if dtype not in _DTYPE_BYTES:
            raise ModelLoadError(
                f"{self._folder}: tensor {name!r} is stored as {dtype}; serve a checkpoint in one of "
                f"{', '.join(_DTYPE_BYTES)}"
            )
        shape: list[int] = part.get_shape()
        return math.prod(shape) * _DTYPE_BYTES[dtype]


def _open_files(folder: Path) -> dict[str, Any]:
    """Tensor name -> the open file that holds it."""
    index = folder / _INDEX
    if not index.is_file():
        file = _open(_only_file(folder))
        return dict.fromkeys(file.keys(), file)
    placed = _weight_map(index)
    missing = sorted({shard for shard in placed.values() if not (folder / shard).is_file()})
    if missing:
        raise ModelLoadError(
            f"{folder} lacks {', '.join(missing[:8])}, named in {_INDEX}; download what is missing"
        )
    files = {shard: _open(folder / shard) for shard in sorted(set(placed.values()))}
    held = {shard: frozenset(file.keys()) for shard, file in files.items()}
    for name, shard in placed.items():
        if name not in held[shard]:
            raise ModelLoadError(
                f"{folder / shard} lacks tensor {name!r}, which {_INDEX} places there; download both again"
            )
    return {name: files[shard] for name, shard in placed.items()}


def _weight_map(index: Path) -> Mapping[str, str]:
    fields = Fields(index, read_json(index))
    placed = fields.mapping("weight_map")
    for shard in placed.values():
        # A file name only: an index must not make us open files elsewhere on this machine.
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise fields.refuse("weight_map", shard, "names of .safetensors files in the same folder")
    return placed


def _only_file(folder: Path) -> Path:
    if (folder / _SINGLE).is_file():
        return folder / _SINGLE
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise ModelLoadError(
            f"{folder} has {len(files)} *.safetensors files but no {_INDEX}; download that file too"
        )
    if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
        raise ModelLoadError(
            f"{folder} has its weights as pickles (*.bin, *.pt), which can run code when they are read; "
            "Shoal never loads them. Convert them to safetensors, or download the model's safetensors files"
        )
    raise ModelLoadError(f"{folder} has no weights; download {_SINGLE}, or {_INDEX} and the files it names")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path} is broken or cut short ({error}); download it again") from error
