"""Send arrays of any sizes from the host to the GPU, many in one copy, without waiting. Knows nothing of what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGN_BYTES = 16
NUM_BUFFERS = 4  # copies that may be under way at once; a step makes one, and two steps are in flight
FIRST_BYTES = 1 << 16


class Upload:
    """Pinned buffers in turn: one is written again only when the copy out of it has ended."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers = [pinned(FIRST_BYTES, device) for _ in range(NUM_BUFFERS)]
        self._copied = [torch.cuda.Event() for _ in range(NUM_BUFFERS)]  # type: ignore[no-untyped-call]
        self._turn = 0

    def send(self, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
        """Each array as a tensor of its shape and type on the device."""
        offsets, num_bytes = [], 0
        for array in arrays:
            offsets.append(num_bytes)
            num_bytes += -(-array.nbytes // ALIGN_BYTES) * ALIGN_BYTES
        self._turn = (self._turn + 1) % NUM_BUFFERS
        copied = self._copied[self._turn]
        copied.synchronize()
        if num_bytes > self._buffers[self._turn].numel():
            self._buffers[self._turn] = pinned(
                max(num_bytes, 2 * self._buffers[self._turn].numel()), self._device
            )
        buffer = self._buffers[self._turn]
        view = buffer.numpy()
        for array, offset in zip(arrays, offsets, strict=True):
            target = view[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
            np.copyto(target, array)
        there = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        there.copy_(buffer[:num_bytes], non_blocking=True)
        copied.record()
        return [_typed(there, offset, array) for array, offset in zip(arrays, offsets, strict=True)]


def pinned(num_bytes: int, device: torch.device) -> Tensor:
    """uint8 that the GPU copies from by itself; a meta device copies nothing."""
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return _DTYPES[dtype]


_DTYPES = {
    np.dtype(np.int64): torch.int64,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
}


def _typed(buffer: Tensor, offset: int, array: NDArray[Any]) -> Tensor:
    return buffer[offset : offset + array.nbytes].view(_DTYPES[array.dtype]).view(array.shape)
