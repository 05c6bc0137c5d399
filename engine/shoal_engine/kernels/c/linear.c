/* Matrix products of a few rows: y = x W^T + bias with W packed as weights.h says, sums in float32.
 *
 * With few rows the time goes into reading W, so it is read once, in order, as small as it is stored, and each thread
 * has panels of its own. Every output is one sum in the order of its elements (of its groups, when quantised), so a
 * row's result has the same bits whatever other rows there are.
 */
#include <stdlib.h>

#include "linear.h"
#include "parallel.h"

/* Words are asked for this many rows of OUTPUTS (cache lines) before they are multiplied. Measured: the processor's own
 * prefetching leaves memory half idle, and 4 KiB of distance a third; 16 KiB hides the multiplications entirely. */
enum { FETCH_LINES = 256 };

enum { MAX_PANELS = 4, PANELS_PER_THREAD = 8, PARTS = OUTPUTS / LANES };

/* sum + the elements 2 pair and 2 pair + 1 of row r, times a pair of weights. */
INLINE Floats multiply_pair(const uint32_t *x, int64_t pair, const int width, int r, Words weights, Floats sum, int dtype)
{
    if (dtype == BFLOAT16) return multiply_add(x[pair * width + r], weights, sum, BFLOAT16);
    sum = multiply_add(x[2 * pair * width + r], weights << 16, sum, FLOAT32);
    return multiply_add(x[(2 * pair + 1) * width + r], weights & 0xffff0000u, sum, FLOAT32);
}

typedef struct {
    const uint32_t *x;
    const float *x_sums;
    int64_t words; /* of one output */
    const uint32_t *weights[MAX_PANELS];
    const uint16_t *scales[MAX_PANELS];
} Operands;

/* sums[row][vector] += words first..last-1 of every panel, while those `ahead` words later are fetched. */
INLINE void multiply_words(const Operands *o, int64_t first, int64_t last, int64_t ahead, const int width, const int vectors,
                           Floats sums[MAX_ROWS][MAX_PANELS * PARTS], Words table, WeightKind kind, int dtype)
{
    const int pairs = elements_per_word(kind) / 2;
    for (int64_t word = first; word < last; word++)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) {
            const uint32_t *line = o->weights[v / PARTS] + word * OUTPUTS;
            Words packed = load_words(line + v % PARTS * LANES);
            if (v % PARTS == 0) __builtin_prefetch(line + ahead, 0, 2);
#pragma GCC unroll 4
            for (int i = 0; i < pairs; i++) {
                Words weights = unpack(packed, i, kind, table);
#pragma GCC unroll 16
                for (int r = 0; r < width; r++)
                    sums[r][v] = multiply_pair(o->x, word * pairs + i, width, r, weights, sums[r][v], dtype);
            }
        }
}

/* What lies ahead of `word`: the same panel, or behind its end the one that takes its place among `panels` next. */
INLINE int64_t words_ahead(const Operands *o, int64_t word, int panels)
{
    int64_t lines = FETCH_LINES / panels;
    return (word + lines < o->words ? lines : lines + (panels - 1) * o->words) * OUTPUTS;
}

INLINE void multiply_pairs(const Operands *o, const int width, const int panels, Floats sums[MAX_ROWS][MAX_PANELS * PARTS],
                           int dtype)
{
    int64_t half = o->words > FETCH_LINES / panels ? o->words - FETCH_LINES / panels : 0;
    multiply_words(o, 0, half, words_ahead(o, 0, panels), width, panels * PARTS, sums, (Words){0}, BFLOAT16_WEIGHTS, dtype);
    multiply_words(o, half, o->words, words_ahead(o, half, panels), width, panels * PARTS, sums, (Words){0},
                   BFLOAT16_WEIGHTS, dtype);
}

INLINE void multiply_groups(const Operands *o, const int width, const int panels, Floats sums[MAX_ROWS][MAX_PANELS * PARTS],
                            WeightKind kind, int dtype)
{
    const int words = GROUP / elements_per_word(kind), scales = has_minimum(kind) ? 2 : 1, vectors = panels * PARTS;
    const Words table = nibble_table(kind);
    for (int64_t group = 0; group * words < o->words; group++) {
        Floats inside[MAX_ROWS][MAX_PANELS * PARTS];
#pragma GCC unroll 16
        for (int r = 0; r < width; r++)
#pragma GCC unroll 16
            for (int v = 0; v < vectors; v++) inside[r][v] = (Floats){0};
        multiply_words(o, group * words, (group + 1) * words, words_ahead(o, group * words, panels), width, vectors, inside,
                       table, kind, dtype);
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) {
            const uint16_t *at = o->scales[v / PARTS] + group * scales * OUTPUTS + v % PARTS * LANES;
            Floats scale = load_half_floats(at), minimum = {0};
            __builtin_prefetch(at + FETCH_LINES / 2 / panels * OUTPUTS, 0, 2);
            if (has_minimum(kind)) minimum = load_half_floats(at + OUTPUTS);
#pragma GCC unroll 16
            for (int r = 0; r < width; r++) {
                sums[r][v] += scale * inside[r][v];
                if (has_minimum(kind)) sums[r][v] += minimum * o->x_sums[group * width + r];
            }
        }
    }
}

INLINE void write_outputs(const Linear *l, int64_t block, int64_t output, Floats sums[MAX_ROWS][MAX_PANELS * PARTS], int v)
{
    int count = l->w->out_features - output < LANES ? (int)(l->w->out_features - output) : LANES;
    Floats bias = {0};
    if (count <= 0) return;
    if (l->bias) bias = load_upto(l->bias, output, count, l->bias_dtype);
    for (int64_t row = block * MAX_ROWS; row < l->rows && row < (block + 1) * MAX_ROWS; row++)
        store_upto(l->out, row * l->w->out_features + output, sums[row % MAX_ROWS][v] + bias, count, l->dtype);
}

/* One block of rows times `panels` panels from `panel` on. */
INLINE void multiply_block(const Linear *l, int64_t block, int64_t panel, int64_t last_panel, const int width,
                           const int panels, WeightKind kind, int dtype)
{
    int64_t groups = l->w->in_features / GROUP, words = l->w->in_features / elements_per_word(kind);
    Operands o = {.x = l->x_columns + block * MAX_ROWS * words_per_row(l), .x_sums = l->x_sums + block * MAX_ROWS * groups,
                  .words = words};
    for (int p = 0; p < panels; p++) {
        /* Behind the last panel the last is repeated and not written. */
        int64_t at = panel + p < last_panel ? panel + p : last_panel - 1;
        o.weights[p] = l->w->words + at * words * OUTPUTS;
        o.scales[p] = l->w->scales + at * groups * (has_minimum(kind) ? 2 : 1) * OUTPUTS;
    }
    Floats sums[MAX_ROWS][MAX_PANELS * PARTS] = {0};
    if (kind == BFLOAT16_WEIGHTS) multiply_pairs(&o, width, panels, sums, dtype);
    else multiply_groups(&o, width, panels, sums, kind, dtype);
    for (int v = 0; v < panels * PARTS; v++)
        if (panel + v / PARTS < last_panel) write_outputs(l, block, panel * OUTPUTS + v * LANES, sums, v);
}

/* Some blocks of rows times up to MAX_PANELS panels. More rows leave registers for fewer panels at once. */
INLINE void multiply_panels(const Linear *l, int64_t first_block, int64_t last_block, int64_t panel, int64_t last,
                            WeightKind kind, int dtype)
{
    for (int64_t block = first_block; block < last_block; block++)
        switch (width_of_block(l, block)) {
        case 1: multiply_block(l, block, panel, last, 1, 4, kind, dtype); break;
        case 4:
            for (int64_t p = panel; p < last; p += 2) multiply_block(l, block, p, last, 4, 2, kind, dtype);
            break;
        case 8:
            for (int64_t p = panel; p < last; p++) multiply_block(l, block, p, last, 8, 1, kind, dtype);
            break;
        default:
            for (int64_t p = panel; p < last; p++) multiply_block(l, block, p, last, 16, 1, kind, dtype);
        }
}

/* This thread's part of all panels; where panels are few and rows are many, of panels and parts of the rows. */
INLINE void multiply_share(const Linear *l, WeightKind kind, int dtype)
{
    int64_t panels = (l->w->out_features + OUTPUTS - 1) / OUTPUTS, blocks = num_blocks(l), first, last;
    int64_t parts = (PANELS_PER_THREAD * omp_get_num_threads() + panels - 1) / panels;
    if (parts > blocks) parts = blocks;
    my_share(parts * panels, &first, &last);
    while (first < last) {
        int64_t part = first / panels, end = (part + 1) * panels < last ? (part + 1) * panels : last;
        for (; first < end; first += MAX_PANELS)
            multiply_panels(l, blocks * part / parts, blocks * (part + 1) / parts, first - part * panels,
                            (first + MAX_PANELS < end ? first + MAX_PANELS : end) - part * panels, kind, dtype);
        first = end;
    }
}

#define FOR_DTYPE(kind) (l->dtype == BFLOAT16 ? multiply_share(l, kind, BFLOAT16) : multiply_share(l, kind, FLOAT32))

static void linear_work(void *job)
{
    const Linear *l = job;
    if (num_blocks(l) > 1) {
        int64_t first, last;
        my_share(num_blocks(l), &first, &last);
        arrange_blocks(l, first, last);
        GOMP_barrier();
    }
    switch (l->w->kind) {
    case BFLOAT16_WEIGHTS: FOR_DTYPE(BFLOAT16_WEIGHTS); break;
    case Q4_0: FOR_DTYPE(Q4_0); break;
    case Q4_1: FOR_DTYPE(Q4_1); break;
    case Q8_0: FOR_DTYPE(Q8_0); break;
    }
}

/* Returns 0, or -1 when there is no memory for a copy of x. */
int shoal_linear(const Weights *w, const void *x, const void *bias, void *out, int64_t rows, int dtype, int bias_dtype)
{
    Linear l = {.w = w, .x = x, .bias = bias, .out = out, .rows = rows, .dtype = dtype, .bias_dtype = bias_dtype};
    int64_t padded = num_blocks(&l) * MAX_ROWS;
    if (rows == 0) return 0;
    l.x_columns = malloc((size_t)(padded * (words_per_row(&l) + w->in_features / GROUP) * 4));
    if (!l.x_columns) return -1;
    l.x_sums = (float *)(l.x_columns + padded * words_per_row(&l));
    if (num_blocks(&l) == 1) arrange_blocks(&l, 0, 1); /* too little to share, and it saves a barrier */
    run_parallel(linear_work, &l, 0, w->in_features * w->out_features >= WORTH_SHARING);
    free(l.x_columns);
    return 0;
}
