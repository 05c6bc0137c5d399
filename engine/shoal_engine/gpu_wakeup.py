"""What a start on a GPU does in threads beside Python's own work, because most of it needs no Python.

The GPU's context and Triton's digest of itself while torch is imported; cuBLAS and cuDNN while the rest is, and weights are
read. Not an error handler: whatever goes wrong here is told by torch, which comes to the same point a moment later.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from shoal_engine.host_runtime import collection_paused

_waking: list[threading.Thread] = []
_DRIVER = "libcuda.so.1"
_FIRST_CAPABILITY = (8, 0)  # of GPUs that `placement` takes


@contextmanager
def woken_gpu(device: str) -> Iterator[None]:
    """Around the import of an engine and its loading, with Python's collector paused. `device` is the option.

    No thread is left behind, whatever happens: one that is inside torch when Python ends would abort the process.
    """
    with collection_paused():
        wakes = device != "cpu" and _has_driver()
        if wakes:
            _begin_digest()
            if not _is_initialized(sys.modules.get("torch")):
                _begin(_create_context)
        try:
            import torch  # noqa: F401  (beside which the context is made)

            if wakes:
                _begin(partial(_use_libraries, _device_index()))
            yield
        finally:
            wait_for_gpu()


def wait_for_gpu() -> None:
    """Until all that is over: a fork in the middle of it would inherit locks and nobody to open them."""
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


def _device_index() -> int:
    """The GPU that the engine will take: the first visible one, unless the caller has chosen for its thread."""
    import torch

    return torch.cuda.current_device() if _is_initialized(torch) else 0


def _is_initialized(torch: Any) -> bool:
    cuda = getattr(torch, "cuda", None)  # absent while torch is being imported
    return cuda is not None and bool(cuda.is_initialized())


def _create_context() -> None:
    """Of the first visible GPU, which torch then shares; by itself it takes the driver a third of a second."""
    cuda = ctypes.CDLL(_DRIVER)
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    if cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(handle), 0) == 0:
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle)


def _begin_digest() -> None:
    """Of Triton's half gigabyte of code, which is part of every key of its cache."""
    try:
        from triton.runtime.cache import triton_key
    except Exception:  # the backend says so
        return
    _begin(triton_key)


def _use_libraries(index: int) -> None:
    """Their first calls load code onto the GPU: 0.1 s each."""
    import torch

    with suppress(Exception):
        if torch.cuda.get_device_capability(index) < _FIRST_CAPABILITY:
            return
        x = torch.zeros((1, 1, 128, 64), dtype=torch.bfloat16, device=f"cuda:{index}")
        torch.mm(x[0, 0], x[0, 0].t())
        torch.ops.aten._scaled_dot_product_cudnn_attention(x, x, x, None, False, 0.0, True)
