/* Rows of words into columns. */
#pragma once

#include "vectors.h"

#ifdef HAS_AVX512
/* to[w] lane r = row r word w of a 16 x 16 square, in place. */
INLINE void transpose_square(__m512i rows[16])
{
    __m512i pairs[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        rows[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    /* rows[4q + j] now holds, in its 128-bit part p, rows 4q..4q+3 of column 4p + j: gather the four q of each column. */
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        pairs[j] = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0x88);
        pairs[4 + j] = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0xdd);
        pairs[8 + j] = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0x88);
        pairs[12 + j] = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0xdd);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        rows[j] = _mm512_shuffle_i32x4(pairs[j], pairs[8 + j], 0x88);
        rows[8 + j] = _mm512_shuffle_i32x4(pairs[j], pairs[8 + j], 0xdd);
        rows[4 + j] = _mm512_shuffle_i32x4(pairs[4 + j], pairs[12 + j], 0x88);
        rows[12 + j] = _mm512_shuffle_i32x4(pairs[4 + j], pairs[12 + j], 0xdd);
    }
}
#endif

/* to[w][0:width] = from[0:count][w] for w < words, zeros where count < width; width is at most 16. */
static void transpose_rows(const uint32_t *from, int64_t words, int count, int width, uint32_t *to)
{
    int64_t w = 0;
#ifdef HAS_AVX512
    __mmask16 columns = (__mmask16)((1u << width) - 1);
    for (; w < words; w += 16) {
        int rest = words - w < 16 ? (int)(words - w) : 16;
        __mmask16 inside = (__mmask16)((1u << rest) - 1);
        __m512i rows[16];
#pragma GCC unroll 16
        for (int r = 0; r < 16; r++)
            rows[r] = _mm512_maskz_loadu_epi32(r < count ? inside : 0, from + (r < count ? r : 0) * words + w);
        transpose_square(rows);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            if (i < rest) _mm512_mask_storeu_epi32(to + (w + i) * width, columns, rows[i]);
    }
#endif
    for (; w < words; w++)
        for (int r = 0; r < width; r++) to[w * width + r] = r < count ? from[r * words + w] : 0;
}
