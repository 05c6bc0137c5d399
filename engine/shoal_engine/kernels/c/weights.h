/* How cpu_linear.py packs weights, and how they become bfloat16 pairs in registers. Knows no activations.
 *
 * A panel is OUTPUTS rows of the weight matrix; its words lie as [word of the row][output], so that one vector holds the
 * same word of many outputs. Quantised rows come in groups of GROUP elements with a float16 scale, and a minimum where
 * the kind has one: [panel][group][scale, minimum][output]. The numbers in a group are small and whole, so bfloat16
 * holds them exactly, and weight = scale * number + minimum is applied to the sum over a group, in float32.
 */
#pragma once

#include "vectors.h"

enum { OUTPUTS = 16, GROUP = 32 };

/* BFLOAT16_WEIGHTS  a word is elements 2i and 2i + 1
 * Q4_0, Q4_1        a word is elements 8i..8i+7: even ones in the nibbles of the low half, odd ones of the high half;
 *                   Q4_0 stores the number plus 8
 * Q8_0              a word is elements 4i..4i+3, a signed byte each */
typedef enum { BFLOAT16_WEIGHTS = 0, Q4_0 = 1, Q4_1 = 2, Q8_0 = 3 } WeightKind;

INLINE int elements_per_word(WeightKind kind) { return kind == BFLOAT16_WEIGHTS ? 2 : kind == Q8_0 ? 4 : 8; }

/* Whether groups have a minimum beside their scale. */
INLINE int has_minimum(WeightKind kind) { return kind == Q4_1; }

/* Two vectors of whole numbers, each exact in 8 bits, as bfloat16 pairs. */
INLINE Words pairs_of(Ints low, Ints high)
{
    return (Words)__builtin_convertvector(low, Floats) >> 16 | (Words)__builtin_convertvector(high, Floats);
}

/* bfloat16 of the numbers 0..15, less 8 for Q4_0; twice, for the lookup reads five bits and the fifth is a neighbour's. */
INLINE Words nibble_table(WeightKind kind)
{
#ifdef HAS_AVX512
    Ints number = (lane_numbers() * 2) & 15;
    if (kind == Q4_0) return pairs_of(number - 8, number - 7);
    return pairs_of(number, number + 1);
#else
    (void)kind;
    return (Words){0};
#endif
}

/* The i-th bfloat16 pair of packed words. */
INLINE Words unpack(Words packed, int i, WeightKind kind, Words table)
{
    if (kind == BFLOAT16_WEIGHTS) return packed;
    if (kind == Q8_0) return pairs_of((Ints)(packed << (24 - 16 * i)) >> 24, (Ints)(packed << (16 - 16 * i)) >> 24);
#ifdef HAS_AVX512
    return (Words)_mm512_permutexvar_epi16((__m512i)(packed >> (4 * i)), (__m512i)table);
#else
    (void)table;
    Ints low = (Ints)(packed >> (4 * i)) & 15, high = (Ints)(packed >> (16 + 4 * i)) & 15;
    return kind == Q4_0 ? pairs_of(low - 8, high - 8) : pairs_of(low, high);
#endif
}

/* LANES float16 numbers as floats, subnormal ones included. */
INLINE Floats load_half_floats(const uint16_t *from)
{
    Halves h;
    memcpy(&h, from, sizeof h);
#ifdef HAS_AVX512
    return (Floats)_mm512_cvtph_ps((__m256i)h);
#else
    Words bits = __builtin_convertvector(h, Words);
    Floats magnitude = (Floats)((bits & 0x7fff) << 13) * 0x1p112f;
    return (Floats)((Words)magnitude | (bits & 0x8000) << 16);
#endif
}
