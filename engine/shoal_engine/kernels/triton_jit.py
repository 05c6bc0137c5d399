"""`triton.jit` with a type. Triton ships no annotations, and a decorator of unknown type is an error under mypy --strict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton

# The result is called as kernel[grid](...), which no signature describes.
jit: Callable[[Callable[..., Any]], Any] = triton.jit


def jit_once(*varying: str) -> Callable[[Callable[..., Any]], Any]:
    """As `jit`, and one compilation serves all values of the `varying` integers, which change from step to step.

    Otherwise Triton compiles again for a value of 1 and for multiples of 16, in the middle of serving.
    """
    return triton.jit(do_not_specialize=list(varying))  # type: ignore[no-any-return]
