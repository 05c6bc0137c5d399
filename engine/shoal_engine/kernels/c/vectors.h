/* Vectors of LANES floats: loads, stores, bfloat16, multiply-add. Knows instruction sets; knows nothing of models.
 *
 * Written with GCC's vector extensions, so that any processor compiles it; intrinsics only where they are several times
 * faster. NaN and infinity behave as IEEE says: do not compile with -ffast-math.
 */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define HAS_AVX512 1
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

#if defined(HAS_AVX512) && defined(__AVX512BF16__)
#define HAS_BF16_DOT 1
#else
#define HAS_BF16_DOT 0
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

enum { FLOAT32 = 0, BFLOAT16 = 1 };

INLINE Floats splat(float x) { return x - (Floats){0}; }

INLINE Ints lane_numbers(void)
{
    Ints lanes;
    for (int i = 0; i < LANES; i++) lanes[i] = i;
    return lanes;
}

INLINE Floats choose(Ints mask, Floats yes, Floats no) { return (Floats)(((Ints)yes & mask) | ((Ints)no & ~mask)); }

/* The larger of both; `b` when either is NaN, so a NaN in `b` survives. */
INLINE Floats larger(Floats a, Floats b)
{
#ifdef HAS_AVX512
    return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return choose(a > b, a, b);
#endif
}

INLINE Floats widen(Halves h)
{
#ifdef HAS_AVX512 /* GCC 12 takes five instructions for the line below */
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#else
    return (Floats)(__builtin_convertvector(h, Words) << 16);
#endif
}

/* Round to nearest even. */
INLINE Halves narrow(Floats x)
{
#if HAS_BF16_DOT
    return (Halves)_mm512_cvtneps_pbh((__m512)x);
#else
    Words bits = (Words)x;
    Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Words quiet_nan = (bits >> 16) | 0x40;
    Words is_nan = (Words)(x != x);
    return __builtin_convertvector((quiet_nan & is_nan) | (rounded & ~is_nan), Halves);
#endif
}

INLINE Floats load(const void *from, int64_t at, int dtype)
{
    if (dtype == BFLOAT16) {
        Halves h;
        memcpy(&h, (const uint16_t *)from + at, sizeof h);
        return widen(h);
    }
    Floats x;
    memcpy(&x, (const float *)from + at, sizeof x);
    return x;
}

INLINE void store(void *to, int64_t at, Floats x, int dtype)
{
    if (dtype == BFLOAT16) {
        Halves h = narrow(x);
        memcpy((uint16_t *)to + at, &h, sizeof h);
    } else {
        memcpy((float *)to + at, &x, sizeof x);
    }
}

/* The first `count` < LANES lanes, zeros behind them. */
INLINE Floats load_some(const void *from, int64_t at, int count, int dtype)
{
#ifdef HAS_AVX512
    __mmask16 mask = (__mmask16)((1u << count) - 1);
    if (dtype == BFLOAT16) return widen((Halves)_mm256_maskz_loadu_epi16(mask, (const uint16_t *)from + at));
    return (Floats)_mm512_maskz_loadu_ps(mask, (const float *)from + at);
#else
    if (dtype == BFLOAT16) {
        Halves h = {0};
        memcpy(&h, (const uint16_t *)from + at, (size_t)count * 2);
        return widen(h);
    }
    Floats x = {0};
    memcpy(&x, (const float *)from + at, (size_t)count * 4);
    return x;
#endif
}

INLINE void store_some(void *to, int64_t at, Floats x, int count, int dtype)
{
#ifdef HAS_AVX512
    __mmask16 mask = (__mmask16)((1u << count) - 1);
    if (dtype == BFLOAT16) _mm256_mask_storeu_epi16((uint16_t *)to + at, mask, (__m256i)narrow(x));
    else _mm512_mask_storeu_ps((float *)to + at, mask, (__m512)x);
#else
    if (dtype == BFLOAT16) {
        Halves h = narrow(x);
        memcpy((uint16_t *)to + at, &h, (size_t)count * 2);
    } else {
        memcpy((float *)to + at, &x, (size_t)count * 4);
    }
#endif
}

/* A whole vector unless a row ends earlier. */
INLINE Floats load_upto(const void *from, int64_t at, int count, int dtype)
{
    return count == LANES ? load(from, at, dtype) : load_some(from, at, count, dtype);
}

INLINE void store_upto(void *to, int64_t at, Floats x, int count, int dtype)
{
    if (count == LANES) store(to, at, x, dtype);
    else store_some(to, at, x, count, dtype);
}

INLINE Words load_words(const uint32_t *from)
{
    Words words;
    memcpy(&words, from, sizeof words);
    return words;
}

/* sum + a * b for words: a float, or two bfloat16 (the first in the low half) that are both multiplied and added. */
INLINE Floats multiply_add(uint32_t a, Words b, Floats sum, int dtype)
{
    float low, high;
    if (dtype == FLOAT32) {
        memcpy(&low, &a, sizeof low);
        return low * (Floats)b + sum;
    }
#if HAS_BF16_DOT
    (void)low, (void)high;
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)b);
#else
    uint32_t low_bits = a << 16, high_bits = a & 0xffff0000u;
    memcpy(&low, &low_bits, sizeof low);
    memcpy(&high, &high_bits, sizeof high);
    return high * (Floats)(b & 0xffff0000u) + (low * (Floats)(b << 16) + sum);
#endif
}

INLINE float sum_of(Floats x)
{
#ifdef HAS_AVX512
    return _mm512_reduce_add_ps((__m512)x);
#else
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) x[i] += x[i + width];
    return x[0];
#endif
}

INLINE float largest_of(Floats x)
{
#ifdef HAS_AVX512
    return _mm512_reduce_max_ps((__m512)x);
#else
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) x[i] = x[i] > x[i + width] ? x[i] : x[i + width];
    return x[0];
#endif
}
