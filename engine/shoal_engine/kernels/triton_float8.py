"""float8 e4m3 widened to bfloat16 in registers by integer arithmetic, exactly.

Hopper's own way goes through half, and its conversion from there has an eighth of the rate of adds: a product of few rows
would wait for it and not for memory. NaN becomes 480; no weight is NaN.
"""

from __future__ import annotations

import os

import triton.language as tl

from shoal_engine.kernels.triton_jit import jit

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # it knows no assembly

# Of two numbers in a register's lower half each byte goes to an upper one; all but the sign moves down by four bits, which
# puts exponent and mantissa where bfloat16 has them and makes each number, a subnormal one too, 2^-120 of what it was.
# 0x7b80 is 2^120, 0x8000 is -0.
_ASSEMBLY = tl.constexpr("""{
.reg .b32 a, b, c, d;
prmt.b32 a, $1, 0, 0x1404;
and.b32 b, a, 0x7f007f00;
shr.b32 b, b, 4;
lop3.b32 a, a, 0x80008000, b, 0xea;
mov.b32 c, 0x7b807b80;
mov.b32 d, 0x80008000;
fma.rn.bf16x2 $0, a, c, d;
}""")


@jit
def to_bfloat16(w):  # type: ignore[no-untyped-def]
    """w float8e4nv -> bfloat16. A thread must hold at least two elements."""
    if _INTERPRETED:
        return w.to(tl.bfloat16)
    return tl.inline_asm_elementwise(
        _ASSEMBLY, "=r,r", [w.to(tl.int8, bitcast=True)], dtype=tl.bfloat16, is_pure=True, pack=2
    )
