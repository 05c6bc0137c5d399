"""`shoal_engine.noise.uniforms` on the GPU: the one random number of a row, the same bits as on the host."""

from __future__ import annotations

import triton.language as tl

from shoal_engine.kernels.triton_jit import jit

_STEP = tl.constexpr(0x9E3779B97F4A7C15)  # SplitMix64; see noise.py
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX_2 = tl.constexpr(0x94D049BB133111EB)


@jit
def uniform(key, position):  # type: ignore[no-untyped-def]
    """key, position: int64 scalars (a key's 64 bits as they are) -> float64 in [0, 1), a multiple of 2^-53."""
    step = tl.full((1,), _STEP, tl.uint64)
    z = key.to(tl.uint64, bitcast=True) + (position + 1).to(tl.uint64) * step
    z = (z ^ (z >> 30)) * tl.full((1,), _MIX_1, tl.uint64)
    z = (z ^ (z >> 27)) * tl.full((1,), _MIX_2, tl.uint64)
    z = z ^ (z >> 31)
    return tl.sum((z >> 11).to(tl.float64) * 1.1102230246251565e-16, 0)
