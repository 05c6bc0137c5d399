"""The head of a GGUF file: what it says of itself and where its tensors lie.

Layout (little endian, versions 2 and 3): "GGUF", u32 version, u64 tensor count, u64 pair count; the pairs
(key, u32 type, value); per tensor its name, u32 rank, u64 sizes (fastest first), u32 block type, u64 offset;
then, aligned, the data. A text is a u64 length and UTF-8; an array is a u32 element type, a u64 count and the
elements.

Every count, length and offset is checked against the file's size before it is used, so a broken or hostile
file ends in ModelLoadError: never in a crash, nor in memory beyond a few times the size of its head. What
cannot be caught is a file that someone cuts short while it is mapped.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal_engine.errors import ModelLoadError
from shoal_engine.quantization.block_types import BLOCK_TYPES, BlockType

Bytes = NDArray[np.uint8]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MAX_RANK = 4
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it lies in the file. `shape` has the slowest dimension first; `data` is a mapped view."""

    name: str
    shape: tuple[int, ...]
    block_type: BlockType
    data: Bytes


class HeadReader:
    """A cursor over a file's head that never leaves the file."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self._path = path
        self._mapped = mapped
        self._size = len(mapped)
        self._at = 0

    def broken(self, what: str) -> ModelLoadError:
        return ModelLoadError(f"{self._path} is not a usable GGUF file: {what}; download it again")

    def read_counts(self) -> tuple[int, int]:
        """Magic, version, and the numbers of tensors and metadata pairs."""
        if self._take(4, "the magic bytes") != b"GGUF":
            raise self.broken("it does not start with the bytes GGUF")
        version = self.read_u32()
        if version not in _VERSIONS:
            if version & 0xFFFF == 0:
                raise self.broken("it is big endian, this engine reads little endian files")
            raise self.broken(
                f"its version is {version}, this engine reads {' and '.join(map(str, _VERSIONS))}"
            )
        num_tensors, num_pairs = self._read_u64(), self._read_u64()
        self._check_room(num_tensors, 8 + 4 + 4 + 8, "tensors")
        self._check_room(num_pairs, 8 + 4 + 1, "metadata pairs")
        return num_tensors, num_pairs

    def read_u32(self) -> int:
        return int.from_bytes(self._take(4, "a number"), "little")

    def read_text(self, what: str) -> str:
        # Not every writer keeps to UTF-8; one odd piece of a vocabulary is no reason to refuse a model.
        return self._take(self._read_u64(), what).decode("utf-8", "replace")

    def read_value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.read_text("a metadata text")
        if kind in _SCALARS:
            code = "<" + _SCALARS[kind]
            return struct.unpack(code, self._take(struct.calcsize(code), "a metadata value"))[0]
        if kind != _ARRAY:
            raise self.broken(f"metadata type {kind} is unknown")
        return self._read_array(self.read_u32(), self._read_u64())

    def read_tensors(self, count: int, alignment: Any) -> dict[str, StoredTensor]:
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self.broken(f"its alignment is {alignment!r}, not a power of two")
        entries = [self._read_entry() for _ in range(count)]
        data_start = -(-self._at // alignment) * alignment
        tensors: dict[str, StoredTensor] = {}
        for name, shape, block_type, offset in entries:
            if name in tensors:
                raise self.broken(f"tensor {name!r} appears twice")
            if offset % alignment:
                raise self.broken(f"tensor {name!r} is not aligned to {alignment} bytes")
            data = self._data(name, shape, block_type, data_start + offset)
            tensors[name] = StoredTensor(name, shape, block_type, data)
        return tensors

    def _read_entry(self) -> tuple[str, tuple[int, ...], BlockType, int]:
        name = self.read_text("a tensor's name")
        rank = self.read_u32()
        if not 1 <= rank <= _MAX_RANK:
            raise self.broken(f"tensor {name!r} has {rank} dimensions")
        shape = tuple(self._read_u64() for _ in range(rank))[::-1]
        kind = self.read_u32()
        if kind not in BLOCK_TYPES:
            raise self.broken(f"tensor {name!r} has the unknown block type {kind}")
        block_type = BLOCK_TYPES[kind]
        if min(shape) == 0 or shape[-1] % block_type.elements:
            raise self.broken(
                f"tensor {name!r} of shape {list(shape)} is not made of whole {block_type.name} blocks"
            )
        return name, shape, block_type, self._read_u64()

    def _data(self, name: str, shape: tuple[int, ...], block_type: BlockType, start: int) -> Bytes:
        num_elements = 1
        for size in shape:
            num_elements *= size
        num_bytes = num_elements // block_type.elements * block_type.num_bytes
        if start + num_bytes > self._size:
            raise self.broken(
                f"it is cut short: tensor {name!r} ends at byte {start + num_bytes} of {self._size}"
            )
        return np.frombuffer(self._mapped, np.uint8, num_bytes, start)

    def _read_array(self, kind: int, count: int) -> Any:
        if kind in _SCALARS:
            element = np.dtype("<" + _SCALARS[kind])
            self._check_room(count, element.itemsize, "array elements")
            start, self._at = self._at, self._at + count * element.itemsize
            return np.frombuffer(self._mapped, element, count, start) if count else np.empty(0, element)
        if kind == _TEXT:
            return self._read_texts(count)
        raise self.broken(f"a metadata array holds elements of type {kind}, not numbers or texts")

    def _read_texts(self, count: int) -> list[str]:
        """A vocabulary has a few hundred thousand texts: this loop is what parsing costs."""
        self._check_room(count, 8, "texts")
        mapped, at, size, length_at = self._mapped, self._at, self._size, _U64.unpack_from
        pieces = []
        for _ in range(count):
            start = at + 8
            if start > size:
                raise self.broken("it ends inside a text")
            at = start + length_at(mapped, at)[0]
            if at > size:
                raise self.broken("it ends inside a text")
            pieces.append(mapped[start:at])
        self._at = at
        return [piece.decode("utf-8", "replace") for piece in pieces]

    def _read_u64(self) -> int:
        return int.from_bytes(self._take(8, "a number"), "little")

    def _take(self, num_bytes: int, what: str) -> bytes:
        start, end = self._at, self._at + num_bytes
        if end > self._size:
            raise self.broken(f"it ends inside {what}")
        self._at = end
        return self._mapped[start:end]

    def _check_room(self, count: int, min_bytes: int, what: str) -> None:
        if count * min_bytes > self._size - self._at:
            raise self.broken(f"it claims {count} {what}, more than fit in its {self._size} bytes")
