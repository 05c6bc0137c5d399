/* c = A B for a B that lies packed in panels of PANEL columns: the inner loop of attention. Knows no attention.
 *
 * Elements are 32-bit words: one float, or, with `pairs`, two bfloat16 that are multiplied and added at once (that
 * needs HAS_BF16_DOT). Sums run over k in order, so a result does not depend on how rows and columns are grouped.
 */
#pragma once

#include "vectors.h"

#if LANES == 8
#define PANEL_VECTORS 2
#else
#define PANEL_VECTORS 4
#endif
#define PANEL (PANEL_VECTORS * LANES)
/* Accumulators plus one row of B must fit the registers: 32 on AVX-512 and Arm, 16 elsewhere. */
#define PANEL_ROWS (LANES == 8 ? 4 : 6)

INLINE Floats multiply_add(uint32_t a, Floats b, Floats sum, int pairs)
{
#if HAS_BF16_DOT
    if (pairs) return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)b);
#endif
    float value;
    memcpy(&value, &a, sizeof value);
    return value * b + sum;
}

INLINE void panel_block(const int rows, const int vectors, const uint32_t *const *a, const uint32_t *panel, float *c,
                        int64_t c_stride, int64_t k_count, int pairs)
{
    Floats sums[6][4];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sums[r][v] = (Floats){0};
    for (int64_t k = 0; k < k_count; k++) {
        Floats b[4];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) memcpy(&b[v], panel + k * PANEL + v * LANES, sizeof b[v]);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sums[r][v] = multiply_add(a[r][k], b[v], sums[r][v], pairs);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) memcpy(c + r * c_stride + v * LANES, &sums[r][v], sizeof(Floats));
}

INLINE void panel_rows(const int vectors, const uint32_t *const *a, const uint32_t *panel, float *c, int64_t c_stride,
                       int64_t rows, int64_t k_count, int pairs)
{
    int64_t r = 0;
    for (; r + PANEL_ROWS <= rows; r += PANEL_ROWS)
        panel_block(PANEL_ROWS, vectors, a + r, panel, c + r * c_stride, c_stride, k_count, pairs);
    a += r, c += r * c_stride;
    switch (rows - r) {
    case 1: panel_block(1, vectors, a, panel, c, c_stride, k_count, pairs); break;
    case 2: panel_block(2, vectors, a, panel, c, c_stride, k_count, pairs); break;
    case 3: panel_block(3, vectors, a, panel, c, c_stride, k_count, pairs); break;
    case 4: panel_block(4, vectors, a, panel, c, c_stride, k_count, pairs); break;
    case 5: panel_block(5, vectors, a, panel, c, c_stride, k_count, pairs); break;
    }
}

INLINE void panel_columns(const uint32_t *const *a, const uint32_t *panel, float *c, int64_t c_stride, int64_t rows,
                          int64_t columns, int64_t k_count, int pairs)
{
    int64_t vectors = (columns + LANES - 1) / LANES;
#if PANEL_VECTORS == 4
    if (vectors == 4) {
        panel_rows(4, a, panel, c, c_stride, rows, k_count, pairs);
        return;
    }
#endif
    for (; vectors >= 2; vectors -= 2, panel += 2 * LANES, c += 2 * LANES)
        panel_rows(2, a, panel, c, c_stride, rows, k_count, pairs);
    if (vectors) panel_rows(1, a, panel, c, c_stride, rows, k_count, pairs);
}

/* c[r][0:columns] = sum over k of a[r][k] * panel[k][0:columns], `columns` rounded up to whole vectors.
 * Compiled once per element type: inlined at each call it would take most of the compiler's time. */
static __attribute__((noinline)) void panel_product_of_floats(const uint32_t *const *a, const uint32_t *panel, float *c,
                                                              int64_t c_stride, int64_t rows, int64_t columns, int64_t k_count)
{
    panel_columns(a, panel, c, c_stride, rows, columns, k_count, 0);
}

#if HAS_BF16_DOT
static __attribute__((noinline)) void panel_product_of_pairs(const uint32_t *const *a, const uint32_t *panel, float *c,
                                                             int64_t c_stride, int64_t rows, int64_t columns, int64_t k_count)
{
    panel_columns(a, panel, c, c_stride, rows, columns, k_count, 1);
}
#endif

INLINE void panel_product(const uint32_t *const *a, const uint32_t *panel, float *c, int64_t c_stride, int64_t rows,
                          int64_t columns, int64_t k_count, int pairs)
{
#if HAS_BF16_DOT
    if (pairs) {
        panel_product_of_pairs(a, panel, c, c_stride, rows, columns, k_count);
        return;
    }
#endif
    panel_product_of_floats(a, panel, c, c_stride, rows, columns, k_count);
}
