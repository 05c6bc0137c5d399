"""What kernels must know of the GPU they run on. A meta tensor stands for one on the GPU that kernels are compiled for.

So a step can be walked through without a GPU, and without memory, to learn what it launches (`start_kernels.py`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class GpuKind:
    """capability: compute capability, (9, 0) for Hopper; processors: streaming multiprocessors."""

    capability: tuple[int, int]
    processors: int


H200 = GpuKind((9, 0), 132)
_stand_in = H200


def stand_in_for(kind: GpuKind) -> None:
    """What meta tensors stand for from now on, in this process."""
    global _stand_in
    _stand_in = kind
    _kind.cache_clear()


def on_gpu(x: Tensor) -> bool:
    return x.is_cuda or x.is_meta


def kind_of(device: torch.device) -> GpuKind:
    """Of a CUDA or meta device. Raises what torch raises for others."""
    return _kind(device)


@functools.cache
def _kind(device: torch.device) -> GpuKind:
    if device.type == "meta":
        return _stand_in
    found = torch.cuda.get_device_properties(device)
    return GpuKind((found.major, found.minor), found.multi_processor_count)
