/* Keys and values of TILE tokens, from the paged cache into the panels that attention multiplies with.
 *
 * Keys are transposed (a panel row is one element, or bfloat16 pair, of the head for PANEL tokens); values keep their
 * order (a panel row is one token, or pair of tokens, for PANEL elements of the head).
 */
#pragma once

#include "panel_product.h"

enum { TILE = 16 };

typedef uint32_t Quad __attribute__((vector_size(16)));

/* to[k][0:16] = from[0:16][k] for k < count; rows of `from` are `stride` words apart. */
INLINE void transpose_tile(const uint32_t *from, int64_t stride, uint32_t *to, int64_t count)
{
    int64_t k = 0;
#ifdef HAS_AVX512
    for (; k < count; k += 16) {
        int64_t rest = count - k < 16 ? count - k : 16;
        __mmask16 mask = (__mmask16)((1u << rest) - 1);
        __m512i a[16], b[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) a[i] = _mm512_maskz_loadu_epi32(mask, from + i * stride + k);
#pragma GCC unroll 8
        for (int i = 0; i < 16; i += 2) {
            b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 16; i += 4) {
            a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
            a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
            a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
            a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
        }
        /* a[4q + j] holds, in 128-bit part p, rows 4q..4q+3 of column 4p + j: now gather the four q of each column. */
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            __m512i even01 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88), odd01 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
            __m512i even23 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88), odd23 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
            b[j] = _mm512_shuffle_i32x4(even01, even23, 0x88);
            b[8 + j] = _mm512_shuffle_i32x4(even01, even23, 0xdd);
            b[4 + j] = _mm512_shuffle_i32x4(odd01, odd23, 0x88);
            b[12 + j] = _mm512_shuffle_i32x4(odd01, odd23, 0xdd);
        }
        if (rest == 16) {
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + (k + i) * PANEL, b[i]);
        } else {
            for (int i = 0; i < rest; i++) _mm512_storeu_si512(to + (k + i) * PANEL, b[i]);
        }
    }
#else
    for (; k + 4 <= count; k += 4)
        for (int t = 0; t < TILE; t += 4) {
            Quad row[4], half[4];
            for (int i = 0; i < 4; i++) memcpy(&row[i], from + (t + i) * stride + k, sizeof(Quad));
            half[0] = __builtin_shuffle(row[0], row[1], (Quad){0, 4, 1, 5});
            half[1] = __builtin_shuffle(row[0], row[1], (Quad){2, 6, 3, 7});
            half[2] = __builtin_shuffle(row[2], row[3], (Quad){0, 4, 1, 5});
            half[3] = __builtin_shuffle(row[2], row[3], (Quad){2, 6, 3, 7});
            for (int i = 0; i < 2; i++) {
                Quad first = __builtin_shuffle(half[i], half[i + 2], (Quad){0, 1, 4, 5});
                Quad second = __builtin_shuffle(half[i], half[i + 2], (Quad){2, 3, 6, 7});
                memcpy(to + (k + 2 * i) * PANEL + t, &first, sizeof(Quad));
                memcpy(to + (k + 2 * i + 1) * PANEL + t, &second, sizeof(Quad));
            }
        }
    for (; k < count; k++)
        for (int t = 0; t < TILE; t++) to[k * PANEL + t] = from[t * stride + k];
#endif
}

/* Word d of row i becomes (tile[2i][d], tile[2i+1][d]) as a bfloat16 pair; head element d lies in panel d / PANEL. */
INLINE void interleave_tile(const uint16_t *tile, int64_t head_dim, uint32_t *to, int64_t panel_words)
{
#if HAS_BF16_DOT
    for (int64_t d = 0; d < head_dim; d += LANES) {
        int count = head_dim - d < LANES ? (int)(head_dim - d) : LANES;
        __mmask16 mask = (__mmask16)((1u << count) - 1);
        uint32_t *column = to + d / PANEL * panel_words + d % PANEL;
        for (int i = 0; i < TILE / 2; i++) {
            const uint16_t *even = tile + 2 * i * head_dim + d, *odd = even + head_dim;
            __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, even));
            __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, odd)), 16);
            _mm512_storeu_si512(column + i * PANEL, _mm512_or_si512(low, high));
        }
    }
#endif
}

/* Floats as they are; head element d lies in panel d / PANEL. */
INLINE void spread_tile(const void *tile, int64_t head_dim, uint32_t *to, int64_t panel_words, int dtype)
{
    for (int64_t d = 0; d < head_dim; d += LANES) {
        int count = head_dim - d < LANES ? (int)(head_dim - d) : LANES;
        uint32_t *column = to + d / PANEL * panel_words + d % PANEL;
        for (int i = 0; i < TILE; i++) {
            Floats x = load_upto(tile, i * head_dim + d, count, dtype);
            memcpy(column + i * PANEL, &x, sizeof x);
        }
    }
}

INLINE void widen_tile(const void *tile, int64_t head_dim, float *to)
{
    for (int64_t i = 0; i < TILE * head_dim; i += LANES) store(to, i, load(tile, i, BFLOAT16), FLOAT32);
}
