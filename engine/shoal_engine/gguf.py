"""A GGUF file, or the files of a split model, mapped: metadata, and tensor bytes by their names in the file.

Knows nothing of models or of how blocks decode; the format itself is read in `gguf_head.py`.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal_engine.errors import ModelLoadError
from shoal_engine.gguf_head import HeadReader, StoredTensor

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class Gguf:
    """A parsed model. Numeric arrays of the metadata are numpy views, texts are str."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


def open_gguf(path: Path) -> Gguf:
    """Map a file, and its sister files when the model is split, and parse. Raises ModelLoadError."""
    first = _open_one(path)
    num_files = first.metadata.get("split.count", 1)
    if not isinstance(num_files, int) or num_files <= 1:
        return first
    tensors = dict(first.tensors)
    for sister in _sisters(path, num_files):
        for name, tensor in _open_one(sister).tensors.items():
            if tensors.setdefault(name, tensor) is not tensor:
                raise ModelLoadError(
                    f"{sister}: tensor {name!r} is also in an earlier file; download them again"
                )
    return Gguf(path, first.metadata, tensors)


def _sisters(path: Path, num_files: int) -> list[Path]:
    match = _SHARD.fullmatch(path.name)
    if match is None or int(match[2]) != 1 or int(match[3]) != num_files:
        raise ModelLoadError(
            f"{path} is one of {num_files} files of a split model; give the first, "
            f"NAME-00001-of-{num_files:05}.gguf, and keep the files' names"
        )
    sisters = [
        path.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf") for number in range(2, num_files + 1)
    ]
    missing = [sister.name for sister in sisters if not sister.is_file()]
    if missing:
        raise ModelLoadError(
            f"{path.parent} lacks {', '.join(missing[:8])}; download every file of the split model"
        )
    return sisters


def _open_one(path: Path) -> Gguf:
    head = HeadReader(path, _map(path))
    num_tensors, num_pairs = head.read_counts()
    metadata: dict[str, Any] = {}
    for _ in range(num_pairs):
        key = head.read_text("a metadata key")
        if key in metadata:
            raise head.broken(f"metadata key {key!r} appears twice")
        metadata[key] = head.read_value(head.read_u32())
    return Gguf(path, metadata, head.read_tensors(num_tensors, metadata.get("general.alignment", 32)))


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            # A private mapping: torch wants memory it may write to, and the file must never change.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except ValueError as error:
        raise ModelLoadError(f"{path} is empty; download it again") from error
    except OSError as error:
        raise ModelLoadError(
            f"{path} cannot be read: {error.strerror}; give a readable .gguf file"
        ) from error
