/* What one matrix product is given, and x rearranged as its loops read it. Multiplies nothing.
 *
 * Rows of x go in blocks of MAX_ROWS, each transposed to [word][row of the block], so that one weight meets all rows.
 */
#pragma once

#include "transpose.h"
#include "weights.h"

enum { MAX_ROWS = 16 };

/* One packed matrix. `_CWeights` in kernels/cpu_linear.py has the same fields in the same order. */
typedef struct {
    const uint32_t *words;
    const uint16_t *scales;
    int64_t in_features, out_features, kind;
} Weights;

typedef struct {
    const Weights *w;
    const void *x, *bias;
    void *out;
    int64_t rows;
    int dtype, bias_dtype;
    uint32_t *x_columns; /* x in blocks of MAX_ROWS rows: [word][row of the block] */
    float *x_sums;       /* of each group: [block][group][row of the block]; for kinds with a minimum */
} Linear;

INLINE int64_t words_per_row(const Linear *l) { return l->dtype == BFLOAT16 ? l->w->in_features / 2 : l->w->in_features; }
INLINE int64_t num_blocks(const Linear *l) { return (l->rows + MAX_ROWS - 1) / MAX_ROWS; }

/* The last block is computed with the next larger number of rows that is compiled. */
INLINE int width_of_block(const Linear *l, int64_t block)
{
    int64_t rows = l->rows - block * MAX_ROWS;
    return rows > 8 ? 16 : rows > 4 ? 8 : rows > 1 ? 4 : 1;
}

/* sums[r] = sum of GROUP elements of each of `count` rows, zeros behind them up to `width`. The order of the additions is
 * sum_of's, for any number of rows. */
static void sum_groups(const Linear *l, int64_t row, int64_t group, int count, int width, float *sums)
{
    Floats partial[MAX_ROWS] = {0};
    for (int r = 0; r < count; r++)
        for (int i = 0; i < GROUP; i += LANES)
            partial[r] += load(l->x, (row + r) * l->w->in_features + group * GROUP + i, l->dtype);
#ifdef HAS_AVX512
    if (width > 1) { /* all rows at once: a seventh of the time of one after the other */
        transpose_square((__m512i *)partial);
        for (int half = LANES / 2; half > 0; half /= 2)
#pragma GCC unroll 8
            for (int i = 0; i < half; i++) partial[i] += partial[i + half];
        store_upto(sums, 0, partial[0], width, FLOAT32);
        return;
    }
#endif
    for (int r = 0; r < width; r++) sums[r] = sum_of(partial[r]);
}

/* Fill x_columns and x_sums for some blocks of rows. */
static void arrange_blocks(const Linear *l, int64_t first_block, int64_t last_block)
{
    int64_t words = words_per_row(l), groups = l->w->in_features / GROUP;
    for (int64_t block = first_block; block < last_block; block++) {
        int64_t first = block * MAX_ROWS;
        int width = width_of_block(l, block), count = l->rows - first < width ? (int)(l->rows - first) : width;
        transpose_rows((const uint32_t *)l->x + first * words, words, count, width, l->x_columns + first * words);
        for (int64_t group = 0; has_minimum(l->w->kind) && group < groups; group++)
            sum_groups(l, first, group, count, width, l->x_sums + first * groups + group * width);
    }
}
