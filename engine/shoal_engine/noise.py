"""The one random number a sampled token needs: a pure function of a request's key and its output position.

Not a stream: nothing is drawn in order, so batches, preemption and other requests cannot shift anybody's numbers.
Computed on the host in integers, so CPU and CUDA see the same bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# SplitMix64 (Steele, Lea, Flood 2014): a counter stepped by an odd constant, then mixed until every bit depends on all.
_STEP = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = 2**64 - 1


def key_of(seed: int) -> int:
    """The 64-bit key of a request. Mixed, so that the counters of neighbouring seeds start far apart."""
    return int(_mix(np.array([(seed + _STEP) & _MASK], dtype=np.uint64))[0])


def uniforms(keys: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """keys [R], positions [R] (output tokens so far) -> R numbers, uniform on the 2^53 multiples of 2^-53 in [0, 1)."""
    counters = keys + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(_STEP)
    return (_mix(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    return z ^ (z >> np.uint64(31))
