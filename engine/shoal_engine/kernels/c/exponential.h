/* 2^x on vectors. */
#pragma once

#include "vectors.h"

/* 2^x; 0 below 2^-126, infinity from 2^128 on, NaN for NaN.
 * x = n + f with n whole and |f| <= 1/2. 2^f is the polynomial that is closest to it: of degree 6 (2 ulp), or, when the
 * result becomes a bfloat16 anyway, of degree 4 (relative error 3e-06). */
INLINE Floats exp2_of(Floats x, int rough)
{
    static const float fine_terms[] = {1.0f,           0x1.62e43p-1f,   0x1.ebfbdcp-3f, 0x1.c6aee8p-5f,
                                       0x1.3b2d4cp-7f, 0x1.5f3e54p-10f, 0x1.41fbbcp-13f};
    static const float rough_terms[] = {1.0f, 0x1.62e12cp-1f, 0x1.ec0378p-3f, 0x1.c9fc46p-5f, 0x1.3a02ccp-7f};
    const float *terms = rough ? rough_terms : fine_terms;
    const int degree = rough ? 4 : 6;
#ifdef HAS_AVX512
    __m512 clamped = _mm512_max_ps(_mm512_set1_ps(-150.0f), (__m512)x);
    clamped = _mm512_min_ps(_mm512_set1_ps(150.0f), clamped);
    Floats n = (Floats)_mm512_roundscale_ps(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    Floats f = (Floats)clamped - n;
#else
    Floats clamped = larger(splat(-127.0f), x);
    clamped = choose(clamped > 128.0f, splat(128.0f), clamped);
    const float shift = 0x1.8p23f; /* adding it leaves the nearest whole number in the low bits */
    Floats shifted = clamped + shift;
    Floats n = shifted - shift;
    Floats f = clamped - n;
#endif
    Floats power = splat(terms[degree]);
#pragma GCC unroll 6
    for (int i = degree - 1; i >= 0; i--) power = power * f + terms[i];
#ifdef HAS_AVX512
    return (Floats)_mm512_scalef_ps((__m512)power, (__m512)n);
#else
    Words exponent = ((Words)shifted - 0x4b400000u + 127) << 23;
    return power * (Floats)exponent;
#endif
}
