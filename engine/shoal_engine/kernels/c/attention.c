/* attend of kernels/interface.py: causal attention over the paged cache with an online softmax.
 *
 * Each span of tokens gives a Partial, and Partials are merged from the first span to the last. So a token's result has
 * the same bits alone, in any batch, in any chunk of its prompt and on any number of threads.
 */
#include "parallel.h"
#include "products.h"
#include "tiles.h"

/* With few rows memory is the limit, and what is needed next must be on its way; with many the multipliers are. */
enum { FETCH_ROWS = 16 };

/* Row r is query head (head * group + r % group) of query token (r / group). */
INLINE int64_t query_head(const Attention *a, const Item *item, int64_t row)
{
    return (item->first_query + row / a->group) * a->num_heads + item->head * a->group + row % a->group;
}

/* The Partial of one span; `next` and `next_token` say whose keys are read after it. */
INLINE void attend_span(const Attention *a, const Item *item, int64_t span, Scratch *s, Partial *out, const Item *next,
                        int64_t next_token, int dtype)
{
    int64_t base = span * SPAN;
    int64_t first = base + at_least(item->begin - base, 0) / TILE * TILE, end = at_most(item->end, base + SPAN);
    int64_t num_tiles = (end - first + TILE - 1) / TILE;
    const uint32_t *rows[item->rows], *tiles[SPAN / TILE], *ahead[SPAN / TILE];
    const uint32_t *const *fetch = item->rows <= FETCH_ROWS ? ahead : NULL;
    Product product = {rows, item->rows, s->scores, SPAN, tiles, num_tiles, fetch, a->key_words};
    for (int64_t r = 0; r < item->rows; r++)
        rows[r] = (const uint32_t *)a->q + query_head(a, item, r) * a->key_words;
    for (int64_t i = 0; i < num_tiles; i++) {
        tiles[i] = key_tile(a, item, first + i * TILE, s->keys + i * TILE * a->key_words, dtype);
        ahead[i] = tile_ahead(a, item, first + i * TILE, VALUES, tiles[i], dtype);
    }
    score_product(&product, dtype);
    for (int64_t r = 0; r < item->rows; r++) {
        int64_t position = item->position + r / a->group - first;
        softmax_row(s->scores + r * SPAN, num_tiles * TILE, a->window ? position - a->window + 1 : 0, position + 1, a->scale,
                    out->largest + r, out->sum + r, dtype);
        rows[r] = (const uint32_t *)(s->scores + r * SPAN);
    }
    for (int64_t i = 0; i < num_tiles; i++) {
        uint32_t *copy = s->values + i * value_rows_per_tile(dtype) * a->value_stride;
        tiles[i] = value_tile(a, item, first + i * TILE, copy, dtype);
        ahead[i] = tile_ahead(a, next, next_token + i * TILE, KEYS, tiles[i], dtype);
    }
    product = (Product){rows, item->rows, out->values, a->value_stride, tiles, num_tiles, fetch, a->value_stride};
    value_product(&product, a->head_dim, dtype);
}

INLINE void write_rows(const Attention *a, const Item *item, const Partial *total, int dtype)
{
    for (int64_t r = 0; r < item->rows; r++) {
        float inverse = total->sum[r] == 0.0f ? 0.0f : 1.0f / total->sum[r];
        for (int64_t d = 0; d < a->head_dim; d += LANES) {
            int count = (int)at_most(a->head_dim - d, LANES);
            Floats value = load(total->values, r * a->value_stride + d, FLOAT32) * inverse;
            store_upto(a->out, query_head(a, item, r) * a->head_dim + d, value, count, dtype);
        }
    }
}

INLINE void run_unit(const Attention *a, const Unit *unit, const Unit *next, Scratch *s, int dtype)
{
    const Item *item = &unit->item;
    for (int64_t span = unit->first_span; span <= unit->last_span; span++) {
        int more = span < unit->last_span;
        Partial out = a->by_span ? partial_of_unit(a, unit->index) : span == unit->first_span ? s->total : s->span;
        attend_span(a, item, span, s, &out, more ? item : next ? &next->item : NULL,
                    (more ? span + 1 : next ? next->first_span : 0) * SPAN, dtype);
        if (span > unit->first_span) merge_partials(&s->total, &s->span, item->rows, a->value_stride, a->scale);
    }
    if (!a->by_span) write_rows(a, item, &s->total, dtype);
}

/* After all spans are done: put the items together. */
INLINE void merge_items(Attention *a, int dtype)
{
    int64_t unit_index = 0, item_index = 0, mine = __atomic_fetch_add(&a->claimed_items, 1, __ATOMIC_RELAXED);
    for (int64_t request = 0; request < a->batch->num_requests; request++) {
        int64_t spans = spans_of_request(a, request), items = items_of_request(a, request);
        for (int64_t i = 0; i < items; i++, item_index++, unit_index += spans) {
            if (item_index != mine) continue;
            Item item = item_of(a, request, i);
            int64_t first_span = item.begin / SPAN;
            Partial total = partial_of_unit(a, unit_index + first_span);
            for (int64_t span = first_span + 1; span * SPAN < item.end; span++) {
                Partial part = partial_of_unit(a, unit_index + span);
                merge_partials(&total, &part, item.rows, a->value_stride, a->scale);
            }
            write_rows(a, &item, &total, dtype);
            mine = __atomic_fetch_add(&a->claimed_items, 1, __ATOMIC_RELAXED);
        }
    }
}

/* From the last to the first: the longest pieces of a prompt come first, and no thread is left with one at the end. */
static int claim(Attention *a, Unit *unit)
{
    int64_t index = a->num_units - 1 - __atomic_fetch_add(&a->claimed_units, 1, __ATOMIC_RELAXED);
    if (index < 0) return 0;
    *unit = unit_of(a, index);
    return 1;
}

INLINE void attend_units(Attention *a, int dtype)
{
    Scratch scratch = scratch_of(a, omp_get_thread_num());
    Unit unit, next;
    int more = claim(a, &next);
    while (more) {
        unit = next;
        more = claim(a, &next);
        run_unit(a, &unit, more ? &next : NULL, &scratch, dtype);
    }
    if (a->by_span) {
        GOMP_barrier();
        merge_items(a, dtype);
    }
}

static void attend_work(void *job)
{
    Attention *a = job;
    if (a->dtype == BFLOAT16) attend_units(a, BFLOAT16);
    else attend_units(a, FLOAT32);
}

int64_t shoal_attend_workspace_bytes(const Batch *batch, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
                                     int dtype)
{
    Attention a = {.batch = batch, .num_heads = num_heads, .num_kv_heads = num_kv_heads, .head_dim = head_dim,
                   .dtype = dtype};
    return plan_attention(&a);
}

void shoal_attend(const void *q, void *out, const Batch *batch, void *blocks, void *workspace, int64_t num_heads,
                  int64_t num_kv_heads, int64_t head_dim, int64_t window, float scale, int dtype)
{
    Attention a = {.q = q, .out = out, .batch = batch, .num_heads = num_heads, .num_kv_heads = num_kv_heads,
                   .head_dim = head_dim, .window = window, .scale = scale * 0x1.715476p0f, .dtype = dtype};
    a.cache = (Cache){blocks, num_kv_heads, batch->block_tokens, head_dim, dtype};
    plan_attention(&a);
    a.workspace = (char *)(((uintptr_t)workspace + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
    run_parallel(attend_work, &a, batch->num_threads, batch->num_threads > 1 && a.num_units > 1);
}
