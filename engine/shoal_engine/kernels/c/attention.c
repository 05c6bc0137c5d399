/* attend of kernels/interface.py: causal attention over the paged cache with an online softmax.
 *
 * Each span of tokens gives a Partial, and Partials are merged from the first span to the last. So a token's result has
 * the same bits alone, in any batch, in any chunk of its prompt and on any number of threads.
 */
#include "attention.h"
#include "parallel.h"

enum { KEYS = 0, VALUES = 1 };

INLINE const char *token_address(const Attention *a, const Item *item, int64_t token, int kind)
{
    const Batch *batch = a->batch;
    int64_t block = batch->tables[item->request * batch->table_stride + token / batch->block_tokens];
    int64_t head = (block * 2 + kind) * a->num_kv_heads + item->head;
    return a->cache + (head * batch->block_tokens + token % batch->block_tokens) * a->head_dim * a->element_bytes;
}

/* Tokens first..first+TILE-1. Those outside the item's range become zeros: their slots may hold anything, and a weight
 * of 0 does not make a NaN harmless. */
INLINE const char *tile_at(const Attention *a, const Item *item, int64_t first, int kind, char *scratch)
{
    int64_t bytes = a->head_dim * a->element_bytes;
    if (a->batch->block_tokens % TILE == 0 && item->begin <= first && first + TILE <= item->end)
        return token_address(a, item, first, kind);
    for (int64_t i = 0; i < TILE; i++) {
        int64_t token = first + i;
        if (token < item->begin || token >= item->end) memset(scratch + i * bytes, 0, (size_t)bytes);
        else memcpy(scratch + i * bytes, token_address(a, item, token, kind), (size_t)bytes);
    }
    return scratch;
}

/* Start loading a tile that will be wanted soon. */
INLINE void prefetch_tile(const Attention *a, const Item *item, int64_t first, int kind)
{
    if (first < item->begin || first >= item->end) return;
    const char *tile = token_address(a, item, first, kind);
    for (int64_t i = 0; i < TILE * a->head_dim * a->element_bytes; i += CACHE_LINE) __builtin_prefetch(tile + i, 0, 3);
}

INLINE void pack_keys(const Attention *a, const Item *item, int64_t base, int64_t first, int64_t last, Scratch *s, int dtype)
{
    for (int64_t t = first; t < last; t += TILE) {
        const char *tile = tile_at(a, item, base + t, KEYS, s->tile);
        prefetch_tile(a, item, base + t, VALUES);
        if (dtype == BFLOAT16 && !uses_pairs(dtype)) {
            widen_tile(tile, a->head_dim, (float *)s->tile + TILE * a->head_dim);
            tile = s->tile + TILE * a->head_dim * 4;
        }
        uint32_t *column = s->keys + t / PANEL * a->key_words * PANEL + t % PANEL;
        transpose_tile((const uint32_t *)tile, a->key_words, column, a->key_words);
    }
}

INLINE void pack_values(const Attention *a, const Item *item, int64_t base, int64_t first, int64_t last, Scratch *s,
                        const Item *next, int64_t next_token, int dtype)
{
    for (int64_t t = first; t < last; t += TILE, next_token += TILE) {
        const char *tile = tile_at(a, item, base + t, VALUES, s->tile);
        if (next) prefetch_tile(a, next, next_token, KEYS);
        if (uses_pairs(dtype))
            interleave_tile((const uint16_t *)tile, a->head_dim, s->values + t / 2 * PANEL, a->value_panel_words);
        else spread_tile(tile, a->head_dim, s->values + t * PANEL, a->value_panel_words, dtype);
    }
}

/* query_rows[r]: the words of row r, which is query head head * group + r % group of query token r / group. */
INLINE void find_queries(const Attention *a, const Item *item, Scratch *s, const uint32_t **query_rows, int dtype)
{
    for (int64_t r = 0; r < item->rows; r++) {
        int64_t head = (item->first_query + r / a->group) * a->num_heads + item->head * a->group + r % a->group;
        const char *query = a->q + head * a->head_dim * a->element_bytes;
        query_rows[r] = (const uint32_t *)query;
        if (dtype == BFLOAT16 && !uses_pairs(dtype)) {
            float *wide = s->queries + r * a->head_dim;
            for (int64_t i = 0; i < a->head_dim; i++) wide[i] = load_some(query, i, 1, BFLOAT16)[0];
            query_rows[r] = (const uint32_t *)wide;
        }
    }
}

/* The Partial of one span; `next` and `next_token` say whose keys are read after it. */
INLINE void attend_span(const Attention *a, const Item *item, int64_t span, Scratch *s, Partial *out, const Item *next,
                        int64_t next_token, int dtype)
{
    const int pairs = uses_pairs(dtype);
    int64_t base = span * SPAN;
    int64_t from = at_least(item->begin - base, 0), upto = at_most(item->end - base, SPAN);
    int64_t first = from / TILE * TILE, last = round_up(upto, TILE);
    const uint32_t *rows[item->rows];
    find_queries(a, item, s, rows, dtype);
    pack_keys(a, item, base, first, last, s, dtype);
    for (int64_t t = first / PANEL * PANEL; t < last; t += PANEL)
        panel_product(rows, s->keys + t * a->key_words, s->scores + t, SPAN, item->rows, at_most(last - t, PANEL),
                      a->key_words, pairs);
    for (int64_t r = 0; r < item->rows; r++) {
        int64_t position = item->position + r / a->group - base;
        softmax_row(s->scores + r * SPAN, first, last, a->window ? position - a->window + 1 : 0, position + 1, a->scale,
                    pairs, out->largest + r, out->sum + r);
        rows[r] = (const uint32_t *)(s->scores + r * SPAN) + (pairs ? first / 2 : first);
    }
    pack_values(a, item, base, first, last, s, next, next_token, dtype);
    for (int64_t d = 0; d < a->head_dim; d += PANEL)
        panel_product(rows, s->values + d / PANEL * a->value_panel_words + (pairs ? first / 2 : first) * PANEL,
                      out->values + d, a->value_stride, item->rows, at_most(a->head_dim - d, PANEL),
                      pairs ? (last - first) / 2 : last - first, pairs);
}

INLINE void write_rows(const Attention *a, const Item *item, const Partial *total, int dtype)
{
    for (int64_t r = 0; r < item->rows; r++) {
        int64_t head = (item->first_query + r / a->group) * a->num_heads + item->head * a->group + r % a->group;
        float inverse = total->sum[r] == 0.0f ? 0.0f : 1.0f / total->sum[r];
        for (int64_t d = 0; d < a->head_dim; d += LANES) {
            int count = (int)at_most(a->head_dim - d, LANES);
            Floats value = load(total->values, r * a->value_stride + d, FLOAT32) * inverse;
            store_upto(a->out, head * a->head_dim + d, value, count, dtype);
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

int64_t shoal_attend_workspace_bytes(const Batch *batch, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, int dtype)
{
    Attention a = {.batch = batch, .num_heads = num_heads, .num_kv_heads = num_kv_heads, .head_dim = head_dim, .dtype = dtype};
    return plan_attention(&a);
}

void shoal_attend(const void *q, void *out, const Batch *batch, const void *cache, void *workspace, int64_t num_heads,
                  int64_t num_kv_heads, int64_t head_dim, int64_t window, float scale, int dtype)
{
    Attention a = {.q = q, .out = out, .batch = batch, .cache = cache, .num_heads = num_heads, .num_kv_heads = num_kv_heads,
                   .head_dim = head_dim, .window = window, .scale = scale * 0x1.715476p0f, .dtype = dtype};
    plan_attention(&a);
    a.workspace = (char *)(((uintptr_t)workspace + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
    run_parallel(attend_work, &a, batch->num_threads, batch->num_threads > 1 && a.num_units > 1);
}
