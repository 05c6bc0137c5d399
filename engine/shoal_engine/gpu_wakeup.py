"""Create the GPU's context while Python is still importing: by itself it takes the driver a third of a second.

Not an error handler: whatever goes wrong here is told by torch, which finds the same GPU a moment later.
"""

from __future__ import annotations

import ctypes
import threading

_waking: list[threading.Thread] = []


def wake_gpu(device: str) -> None:
    """In a thread, for the first visible GPU, whose context torch then shares. `device` is the option."""
    if device != "cpu":
        thread = threading.Thread(target=_create_context, name="wake-gpu", daemon=True)
        thread.start()
        _waking.append(thread)


def wait_for_gpu() -> None:
    """Until that is over: a fork in the middle of it would inherit the loader's lock and nobody to open it."""
    while _waking:
        _waking.pop().join()


def _create_context() -> None:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    if cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(handle), 0) == 0:
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle)
