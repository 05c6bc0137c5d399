/* The two products of attention, query . key and weight . value, for some rows of queries at once. Knows no softmax.
 *
 * Operands are 32-bit words as cache.h defines them. Every sum runs in the order of its words, so a result has the same
 * bits however rows, tokens and elements are grouped. Compiled once per dtype: inlining them would take seconds.
 */
#pragma once

#include "cache.h"

/* A multiply-add takes 6 cycles where two start in each (Zen 5): at least 12 sums must be on their way. 3 rows of 8
 * vectors fill 32 registers, 3 of 4 fill 16, and what is loaded for one row serves the others. */
enum { MAX_ROWS_AT_ONCE = 3, MAX_VECTORS = LANES == 8 ? 4 : 8, MAX_VALUE_VECTORS = MAX_VECTORS / 2 };

typedef struct {
    const uint32_t *const *rows; /* left operand: words of each row */
    int64_t num_rows;
    float *out; /* [num_rows][stride] */
    int64_t stride;
    const uint32_t *const *tiles; /* right operand */
    int64_t num_tiles;
    const uint32_t *const *ahead; /* tiles wanted next, loaded along line by line; NULL: none */
    int64_t words;                /* scores: words per head. values: words from one row of a tile to the next */
} Product;

INLINE void score_block(const int rows, const Product *p, int64_t row, int64_t first_tile, int fetch, int dtype)
{
    Floats sums[MAX_ROWS_AT_ONCE][MAX_VECTORS] = {0};
    const uint32_t *column[MAX_VECTORS], *ahead[MAX_VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < MAX_VECTORS; v++) {
        /* Behind the last tile the last is repeated: nobody reads those scores. */
        int64_t tile = first_tile + v * LANES / TILE;
        if (tile >= p->num_tiles) tile = p->num_tiles - 1;
        column[v] = p->tiles[tile] + v * LANES % TILE;
        if (fetch) ahead[v] = p->ahead[tile];
    }
    for (int64_t w = 0; w < p->words; w++)
#pragma GCC unroll 8
        for (int v = 0; v < MAX_VECTORS; v++) {
            Words keys = load_words(column[v] + w * TILE);
            if (fetch) __builtin_prefetch(ahead[v] + w * TILE);
#pragma GCC unroll 3
            for (int r = 0; r < rows; r++) sums[r][v] = multiply_add(p->rows[row + r][w], keys, sums[r][v], dtype);
        }
#pragma GCC unroll 3
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < MAX_VECTORS; v++)
            store(p->out + (row + r) * p->stride, first_tile * TILE + v * LANES, sums[r][v], FLOAT32);
}

/* Even and odd tiles have sums of their own, added at the end, for there are only half as many vectors in a head. It does
 * not matter which tile counts as the first: a + b has the bits of b + a. */
INLINE void value_block(const int rows, const int vectors, const Product *p, int64_t row, int64_t column, int fetch,
                        int dtype)
{
    const int64_t tile_rows = value_rows_per_tile(dtype);
    Floats sums[2][MAX_ROWS_AT_ONCE][MAX_VALUE_VECTORS] = {0};
    int64_t tile = 0;
    for (; tile + 1 < p->num_tiles; tile += 2)
        for (int64_t i = 0; i < tile_rows; i++)
#pragma GCC unroll 2
            for (int odd = 0; odd < 2; odd++)
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++) {
                    int64_t at = i * p->words + column + v * LANES;
                    Words values = load_words(p->tiles[tile + odd] + at);
                    if (fetch) __builtin_prefetch(p->ahead[tile + odd] + at);
#pragma GCC unroll 3
                    for (int r = 0; r < rows; r++) {
                        uint32_t weight = p->rows[row + r][(tile + odd) * tile_rows + i];
                        sums[odd][r][v] = multiply_add(weight, values, sums[odd][r][v], dtype);
                    }
                }
    for (int64_t i = 0; tile < p->num_tiles && i < tile_rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            int64_t at = i * p->words + column + v * LANES;
            Words values = load_words(p->tiles[tile] + at);
            if (fetch) __builtin_prefetch(p->ahead[tile] + at);
#pragma GCC unroll 3
            for (int r = 0; r < rows; r++)
                sums[0][r][v] = multiply_add(p->rows[row + r][tile * tile_rows + i], values, sums[0][r][v], dtype);
        }
#pragma GCC unroll 3
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            store(p->out + (row + r) * p->stride, column + v * LANES, sums[0][r][v] + sums[1][r][v], FLOAT32);
}

/* Call BLOCK(rows, ...) until all rows are done. The number is a constant in each call, so that loops unroll; four rows
 * go as 2 + 2, for a single one would leave the multipliers waiting. */
#define FOR_ROWS(p, BLOCK, ...)                                                              \
    do {                                                                                     \
        int64_t row = 0, count = (p)->num_rows;                                              \
        for (; count - row == 3 || count - row > 4; row += 3) BLOCK(3, __VA_ARGS__);         \
        for (; count - row >= 2; row += 2) BLOCK(2, __VA_ARGS__);                            \
        if (row < count) BLOCK(1, __VA_ARGS__);                                              \
    } while (0)

INLINE void score_rows(const Product *p, int fetch, int dtype)
{
    for (int64_t tile = 0; tile < p->num_tiles; tile += MAX_VECTORS * LANES / TILE)
        FOR_ROWS(p, score_block, p, row, tile, fetch, dtype);
}

INLINE void value_rows(const Product *p, int64_t columns, int fetch, int dtype)
{
    const int width = MAX_VALUE_VECTORS * LANES;
    int64_t d = 0;
    for (; d + width <= columns; d += width) FOR_ROWS(p, value_block, MAX_VALUE_VECTORS, p, row, d, fetch, dtype);
    for (; d < columns; d += LANES) FOR_ROWS(p, value_block, 1, p, row, d, fetch, dtype);
}

#define ONCE static __attribute__((noinline)) void
ONCE score_floats(const Product *p) { p->ahead ? score_rows(p, 1, FLOAT32) : score_rows(p, 0, FLOAT32); }
ONCE score_pairs(const Product *p) { p->ahead ? score_rows(p, 1, BFLOAT16) : score_rows(p, 0, BFLOAT16); }
ONCE value_floats(const Product *p, int64_t d) { p->ahead ? value_rows(p, d, 1, FLOAT32) : value_rows(p, d, 0, FLOAT32); }
ONCE value_pairs(const Product *p, int64_t d) { p->ahead ? value_rows(p, d, 1, BFLOAT16) : value_rows(p, d, 0, BFLOAT16); }
#undef ONCE

/* out[r][16 i + t] = row r . key t of tile i; columns up to the next multiple of MAX_VECTORS * LANES are overwritten. */
INLINE void score_product(const Product *p, int dtype) { dtype == BFLOAT16 ? score_pairs(p) : score_floats(p); }

/* out[r][d] = sum over tokens of weight * value, for d < columns rounded up to LANES. */
INLINE void value_product(const Product *p, int64_t columns, int dtype)
{
    dtype == BFLOAT16 ? value_pairs(p, columns) : value_floats(p, columns);
}
