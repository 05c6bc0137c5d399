/* What one call of attend is cut into: items, spans, units, and the memory they need. Pure arithmetic.
 *
 * An item is some query tokens of one request for one key/value head; all query heads that read this head are its rows,
 * so keys and values are read once for all of them. The tokens it sees are cut at multiples of SPAN. A unit is what a
 * thread claims at once: an item, or, where items are too few to keep the threads busy, one span of one.
 */
#pragma once

#include "batch.h"
#include "cache.h"
#include "softmax.h"

enum { SPAN = 256, MAX_ROWS = 64, ITEMS_PER_THREAD = 4, CACHE_LINE = 64 };

typedef struct {
    const char *q;
    char *out, *workspace;
    const Batch *batch;
    Cache cache;
    int64_t num_heads, num_kv_heads, head_dim, window; /* window 0: all tokens are visible */
    float scale;                                       /* includes log2(e) */
    int dtype;
    /* what follows from them, see plan_attention */
    int64_t group, item_queries, item_rows, key_words, value_stride;
    int64_t num_items, num_units, scratch_bytes, partial_floats;
    int by_span;
    int64_t claimed_units, claimed_items;
} Attention;

typedef struct {
    int64_t request, head, first_query, queries, rows; /* first_query is a row of q */
    int64_t position;                                  /* of the first query in its request */
    int64_t begin, end;                                /* tokens that any of the queries sees */
} Item;

typedef struct {
    Item item;
    int64_t index, first_span, last_span;
} Unit;

/* One thread's memory. */
typedef struct {
    uint32_t *keys, *values; /* tiles of one span that cannot be read where they lie */
    float *scores;           /* [item_rows][SPAN] */
    Partial span, total;
} Scratch;

INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
INLINE int64_t at_most(int64_t n, int64_t limit) { return n < limit ? n : limit; }
INLINE int64_t at_least(int64_t n, int64_t limit) { return n > limit ? n : limit; }

static int64_t items_of_request(const Attention *a, int64_t request)
{
    int64_t queries = a->batch->query_start[request + 1] - a->batch->query_start[request];
    return (queries + a->item_queries - 1) / a->item_queries * a->num_kv_heads;
}

static int64_t spans_of_request(const Attention *a, int64_t request)
{
    return ((int64_t)a->batch->context_lens[request] + SPAN - 1) / SPAN;
}

static int64_t span_value_words(const Attention *a)
{
    return SPAN / TILE * value_rows_per_tile(a->dtype) * a->value_stride;
}

/* Fill in what follows from the arguments. Returns the bytes of workspace that the call needs. */
static int64_t plan_attention(Attention *a)
{
    const Batch *batch = a->batch;
    a->group = a->num_heads / a->num_kv_heads;
    a->item_queries = at_most(at_least(MAX_ROWS / a->group, 1), at_least(batch->max_query_len, 1));
    a->item_rows = a->item_queries * a->group;
    a->key_words = words_per_head(a->head_dim, a->dtype);
    a->value_stride = round_up(a->head_dim, LANES);
    a->partial_floats = round_up(a->item_rows * (2 + a->value_stride), CACHE_LINE);
    int64_t span_units = 0;
    for (int64_t r = 0; r < batch->num_requests; r++) {
        int64_t items = items_of_request(a, r);
        a->num_items += items;
        span_units += items * spans_of_request(a, r);
    }
    a->by_span = batch->num_threads > 1 && a->num_items < ITEMS_PER_THREAD * batch->num_threads;
    a->num_units = a->by_span ? span_units : a->num_items;
    int64_t words = a->key_words * SPAN + span_value_words(a) + a->item_rows * SPAN + 2 * a->partial_floats;
    a->scratch_bytes = round_up(words * 4, 4096);
    return CACHE_LINE + batch->num_threads * a->scratch_bytes + (a->by_span ? span_units * a->partial_floats * 4 : 0);
}

static Partial partial_at(const Attention *a, float *floats)
{
    return (Partial){floats, floats + a->item_rows, floats + 2 * a->item_rows};
}

static Scratch scratch_of(const Attention *a, int64_t thread)
{
    Scratch s;
    s.keys = (uint32_t *)(a->workspace + thread * a->scratch_bytes);
    s.values = s.keys + a->key_words * SPAN;
    s.scores = (float *)(s.values + span_value_words(a));
    s.span = partial_at(a, s.scores + a->item_rows * SPAN);
    s.total = partial_at(a, s.span.largest + a->partial_floats);
    return s;
}

/* Where the Partial of a unit waits for its neighbours, when `by_span`. */
static Partial partial_of_unit(const Attention *a, int64_t unit)
{
    char *all = a->workspace + a->batch->num_threads * a->scratch_bytes;
    return partial_at(a, (float *)all + unit * a->partial_floats);
}

static Item item_of(const Attention *a, int64_t request, int64_t index)
{
    const Batch *batch = a->batch;
    int64_t last_query = batch->query_start[request + 1];
    Item item = {.request = request, .head = index % a->num_kv_heads};
    item.first_query = batch->query_start[request] + index / a->num_kv_heads * a->item_queries;
    item.queries = at_most(a->item_queries, last_query - item.first_query);
    item.rows = item.queries * a->group;
    item.position = batch->context_lens[request] - (last_query - item.first_query);
    item.begin = a->window ? at_least(item.position - a->window + 1, 0) : 0;
    item.end = item.position + item.queries;
    return item;
}

static Unit unit_of(const Attention *a, int64_t index)
{
    int64_t request = 0, inside = index, spans = 1;
    for (;; request++) {
        if (a->by_span) spans = spans_of_request(a, request);
        int64_t units = items_of_request(a, request) * spans;
        if (inside < units) break;
        inside -= units;
    }
    Unit unit = {.item = item_of(a, request, inside / spans), .index = index};
    unit.first_span = unit.item.begin / SPAN;
    unit.last_span = (unit.item.end - 1) / SPAN;
    if (a->by_span) {
        /* Of all spans of the request; one that this item does not see leaves the range empty. */
        unit.first_span = at_least(inside % spans, unit.first_span);
        unit.last_span = at_most(inside % spans, unit.last_span);
    }
    return unit;
}
