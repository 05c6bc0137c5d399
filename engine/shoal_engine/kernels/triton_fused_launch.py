"""Programmatic dependent launch: a kernel starts while the one before it ends, and waits where it first needs its results.

What a kernel reads before `wait` must be constant during the step: weights, tables, lengths, and the cache of tokens of
earlier steps. `trigger` says that the next kernel may start; it is only a hint, and where it pays differs by kernel.
Every program that writes must have waited first: that keeps the order of all kernels before it.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton.language as tl

from shoal_engine.kernels.gpu import kind_of
from shoal_engine.kernels.triton_jit import jit

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_FIRST_CAPABILITY = 9  # Hopper


@jit
def wait(overlap: tl.constexpr):  # type: ignore[no-untyped-def]
    """Until all kernels before this one are complete and what they wrote is seen."""
    if overlap:
        tl.extra.cuda.gdc_wait()


@jit
def trigger(overlap: tl.constexpr):  # type: ignore[no-untyped-def]
    """The next kernel may start once every program of this one has come here or ended."""
    if overlap:
        tl.extra.cuda.gdc_launch_dependents()


def can_overlap(device: torch.device) -> bool:
    if INTERPRETED or device.type == "cpu":
        return False
    return kind_of(device).capability[0] >= _FIRST_CAPABILITY


def launch_options(overlap: bool) -> dict[str, Any]:
    """The interpreter knows no such option."""
    return {"launch_pdl": True} if overlap else {}
