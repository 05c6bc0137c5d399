"""What a start on a GPU does in threads beside Python's own work, because no part of it needs Python.

The GPU's context and Triton's digest of itself while torch is imported; cuBLAS and cuDNN while the rest is, and weights are
read. Not an error handler: whatever goes wrong here is told by torch, which comes to the same point a moment later.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress

_waking: list[threading.Thread] = []
_DRIVER = "libcuda.so.1"


def wake_gpu(device: str) -> None:
    """Before torch is imported. The first visible GPU's context is one that torch then shares. `device` is the option."""
    if device != "cpu" and _has_driver():
        _begin(_create_context)
        _begin_digest()


def wake_libraries(device: str) -> None:
    """As soon as torch is imported."""
    if device != "cpu" and _has_driver():
        _begin(_use_libraries)


def wait_for_gpu() -> None:
    """Until all that is over: a fork in the middle of it would inherit the loader's lock and nobody to open it."""
    while _waking:
        _waking.pop().join()


def _begin(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work, name="wake-gpu", daemon=True)
    thread.start()
    _waking.append(thread)


def _has_driver() -> bool:
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return False
    return True


def _create_context() -> None:
    """By itself it takes the driver a third of a second."""
    cuda = ctypes.CDLL(_DRIVER)
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    if cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(handle), 0) == 0:
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle)


def _begin_digest() -> None:
    """Of Triton's half gigabyte of code, which is part of every key of its cache."""
    try:
        from triton.runtime.cache import triton_key
    except ImportError:  # the backend says so
        return
    _begin(triton_key)


def _use_libraries() -> None:
    """Their first calls load code onto the GPU: 0.1 s each."""
    import torch

    with suppress(Exception):
        x = torch.zeros((1, 1, 128, 64), dtype=torch.bfloat16, device="cuda")
        torch.mm(x[0, 0], x[0, 0].t())
        torch.ops.aten._scaled_dot_product_cudnn_attention(x, x, x, None, False, 0.0, True)
