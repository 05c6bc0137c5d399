"""Arrays at fixed places in a GPU's memory that the host rewrites before each step, in one copy and without waiting.

Recorded graphs hold the addresses. For arrays that differ in size from step to step see `upload.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal_engine.upload import ALIGN_BYTES, NUM_BUFFERS, pinned, torch_dtype

Arrays = dict[str, NDArray[Any]]


class Staging:
    """`device[name]` is a tensor for each of `fields`, name -> (type, count), in this order in memory."""

    def __init__(self, fields: Mapping[str, tuple[type[np.generic], int]], device: torch.device) -> None:
        self._ends: dict[str, int] = {}
        offsets: dict[str, int] = {}
        at = 0
        for name, (dtype, count) in fields.items():
            offsets[name] = at
            self._ends[name] = at + count * np.dtype(dtype).itemsize
            at = -(-self._ends[name] // ALIGN_BYTES) * ALIGN_BYTES
        self._memory = torch.zeros(at, dtype=torch.uint8, device=device)
        self._offsets = offsets
        self._buffers = [pinned(at, device) for _ in range(NUM_BUFFERS)]
        self._arrays: list[Arrays] = [
            {name: buffer.numpy()[offsets[name] : self._ends[name]].view(fields[name][0]) for name in fields}
            for buffer in self._buffers
        ]
        self._copied = [torch.cuda.Event() for _ in range(NUM_BUFFERS)]  # type: ignore[no-untyped-call]
        self._turn = 0
        self.device: dict[str, Tensor] = {
            name: self._memory[offsets[name] : self._ends[name]].view(torch_dtype(np.dtype(fields[name][0])))
            for name in fields
        }

    def begin(self) -> Arrays:
        """Arrays to fill, with what was in them some steps ago."""
        self._turn = (self._turn + 1) % NUM_BUFFERS
        self._copied[self._turn].synchronize()
        return self._arrays[self._turn]

    def send(self, last: str, count: int) -> None:
        """Copy all fields up to `last`, and of that one the first `count` elements."""
        array = self._arrays[self._turn][last]
        end = self._offsets[last] + count * array.itemsize
        self._memory[:end].copy_(self._buffers[self._turn][:end], non_blocking=True)
        self._copied[self._turn].record()
