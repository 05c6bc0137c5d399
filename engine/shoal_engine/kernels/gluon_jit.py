"""`triton_jit.py` for Gluon: its decorators with a type, and what it calls otherwise in another release."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

jit: Callable[[Callable[..., Any]], Any] = gluon.jit

# Up to Triton 3.6 it has another name.
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


def jit_once(*varying: str) -> Callable[[Callable[..., Any]], Any]:
    """As `triton_jit.jit_once`."""
    return gluon.jit(do_not_specialize=list(varying))  # type: ignore[no-any-return]
