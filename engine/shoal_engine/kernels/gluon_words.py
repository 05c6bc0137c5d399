"""Numbers in words of four bytes, two or four to a word, for Gluon kernels: loops carry words and unpack where they multiply.

Of a tensor of numbers that it carries a loop keeps each in a register of its own, however narrow; four times the registers.
"""

from __future__ import annotations

from triton.experimental.gluon import language as gl

from shoal_engine.kernels.gluon_jit import jit
from shoal_engine.kernels.triton_fused_operands import SIXTEENTH

# Four float8_e4m3 as two pairs of bfloat16: exponent and mantissa in place, then 2^120 for the exponents' difference.
_BFLOAT16_PAIRS = gl.constexpr("""
{
    .reg .b32 a, b, s, t, f;
    prmt.b32 a, $2, 0, 0x1404;
    prmt.b32 b, $2, 0, 0x3424;
    lop3.b32 s, a, 0x80008000, 0, 0xc0;
    shr.b32 a, a, 4;
    lop3.b32 a, a, 0x07f007f0, s, 0xea;
    lop3.b32 t, b, 0x80008000, 0, 0xc0;
    shr.b32 b, b, 4;
    lop3.b32 b, b, 0x07f007f0, t, 0xea;
    mov.b32 f, 0x7b807b80;
    mul.rn.bf16x2 $0, a, f;
    mul.rn.bf16x2 $1, b, f;
}
""")
# To float16 the card has an instruction.
_FLOAT16_PAIRS = gl.constexpr("""
{
    .reg .b16 low, high;
    mov.b32 {low, high}, $2;
    cvt.rn.f16x2.e4m3x2 $0, low;
    cvt.rn.f16x2.e4m3x2 $1, high;
}
""")
# Two bfloat16 as two float16 of SIXTEENTH of them: exact from 2^-13 on, and the largest there is from 2^20 on.
_FLOAT16_PAIR = gl.constexpr("""
{
    .reg .b32 f, part, low, high;
    mov.b32 f, 0x3d803d80;
    mul.rn.bf16x2 part, $1, f;
    shl.b32 low, part, 16;
    and.b32 high, part, 0xffff0000;
    cvt.rn.satfinite.f16x2.f32 $0, high, low;
}
""")


@jit
def sixteenths(words):  # type: ignore[no-untyped-def]
    """Words of two bfloat16 -> words of a sixteenth of them in float16, which does not reach as far."""
    return gl.inline_asm_elementwise(_FLOAT16_PAIR, "=r,r", [words], dtype=gl.int32, is_pure=True, pack=1)


@jit
def stored(value, dtype: gl.constexpr):  # type: ignore[no-untyped-def]
    """value float32 as a kernel leaves it to a product: in the model's dtype, or a sixteenth of it in float16.

    A million is then the largest, for infinity too; NaN stays. What the residual holds of either the last norm sees.
    """
    if dtype == gl.float16:
        return gl.inline_asm_elementwise(
            "cvt.rn.satfinite.f16.f32 $0, $1;",
            "=h,f",
            [value * SIXTEENTH],
            dtype=gl.float16,
            is_pure=True,
            pack=1,
        )
    else:
        return value.to(dtype)


@jit
def halves(words, dtype: gl.constexpr):  # type: ignore[no-untyped-def]
    """Each word's two numbers of 16 bits: bfloat16 or float16."""
    if dtype == gl.bfloat16:
        return gl.inline_asm_elementwise(
            "mov.b32 {$0, $1}, $2;",
            "=h,=h,r",
            [words],
            dtype=(gl.bfloat16, gl.bfloat16),
            is_pure=True,
            pack=1,
        )
    else:
        return gl.inline_asm_elementwise(
            "mov.b32 {$0, $1}, $2;", "=h,=h,r", [words], dtype=(gl.float16, gl.float16), is_pure=True, pack=1
        )


@jit
def in_halves(words, packed: gl.constexpr, dtype: gl.constexpr):  # type: ignore[no-untyped-def]
    """words [A, B, C] of `packed` numbers -> words [A, B, C * packed / 2] of two: float8 is widened to `dtype`."""
    if packed == 4:
        pairs: gl.constexpr = _BFLOAT16_PAIRS if dtype == gl.bfloat16 else _FLOAT16_PAIRS
        low, high = gl.inline_asm_elementwise(
            pairs, "=r,=r,r", [words], dtype=(gl.int32, gl.int32), is_pure=True, pack=1
        )
        return gl.join(low, high).reshape([words.shape[0], words.shape[1], words.shape[2] * 2])
    else:
        return words


@jit
def numbers(words, packed: gl.constexpr, dtype: gl.constexpr):  # type: ignore[no-untyped-def]
    """words [A, B, C] -> [A, B, C * packed] of `dtype`, 16 bits wide."""
    shape: gl.constexpr = words.shape
    low, high = halves(in_halves(words, packed, dtype), dtype)
    return gl.join(low, high).reshape([shape[0], shape[1], shape[2] * packed])
