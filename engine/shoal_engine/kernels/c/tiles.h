/* The tiles of keys and values that an item of attention reads: where they lie, or copies of them. */
#pragma once

#include "attention.h"

/* The head of an item in the block that holds `token`. */
INLINE uint32_t *head_of_token(const Attention *a, const Item *item, int64_t token, int kind)
{
    const Batch *batch = a->batch;
    int64_t block = batch->tables[item->request * batch->table_stride + token / batch->block_tokens];
    return head_in_block(&a->cache, block, kind, item->head);
}

INLINE const uint32_t *tile_in_cache(const Attention *a, const Item *item, int64_t token, int kind, int dtype)
{
    int64_t words = kind == KEYS ? a->key_words * TILE : value_rows_per_tile(dtype) * a->head_dim;
    return head_of_token(a, item, token, kind) + token % a->batch->block_tokens / TILE * words;
}

INLINE int sees(const Item *item, int64_t token) { return item->begin <= token && token < item->end; }

/* Where a tile will be read from next, or `otherwise` when that is no single place. */
INLINE const uint32_t *tile_ahead(const Attention *a, const Item *item, int64_t token, int kind,
                                  const uint32_t *otherwise, int dtype)
{
    if (!item || a->batch->block_tokens < TILE || !sees(item, token)) return otherwise;
    return tile_in_cache(a, item, token, kind, dtype);
}

/* Keys of TILE tokens: in the cache, or put together from blocks that are smaller. */
INLINE const uint32_t *key_tile(const Attention *a, const Item *item, int64_t first, uint32_t *copy, int dtype)
{
    if (a->batch->block_tokens >= TILE) return tile_in_cache(a, item, first, KEYS, dtype);
    memset(copy, 0, (size_t)(a->key_words * TILE * 4));
    for (int64_t token = first; token < first + TILE; token++) {
        if (!sees(item, token)) continue;
        int64_t stride;
        uint32_t *head = head_of_token(a, item, token, KEYS);
        const uint32_t *key = key_in_head(&a->cache, head, token % a->batch->block_tokens, &stride);
        copy_elements(copy + token - first, TILE, key, stride, a->key_words, 4);
    }
    return copy;
}

/* Which halves of a row of values are visible: all bits, one half, or none. */
INLINE uint32_t visible_bits(const Item *item, int64_t first, int64_t row, int dtype)
{
    if (dtype == FLOAT32) return sees(item, first + row) ? ~0u : 0;
    return (sees(item, first + 2 * row) ? 0xffffu : 0) | (sees(item, first + 2 * row + 1) ? 0xffff0000u : 0);
}

/* Values of TILE tokens. What the item does not see becomes zero: those slots may hold anything, and a weight of 0 does
 * not make a NaN harmless. */
INLINE const uint32_t *value_tile(const Attention *a, const Item *item, int64_t first, uint32_t *copy, int dtype)
{
    const int element_bytes = dtype == BFLOAT16 ? 2 : 4;
    int64_t rows = value_rows_per_tile(dtype), stride;
    if (a->batch->block_tokens >= TILE && a->head_dim % LANES == 0) {
        const uint32_t *tile = tile_in_cache(a, item, first, VALUES, dtype);
        if (sees(item, first) && sees(item, first + TILE - 1)) return tile;
        for (int64_t r = 0; r < rows; r++) {
            uint32_t bits = visible_bits(item, first, r, dtype);
            for (int64_t d = 0; d < a->head_dim; d++) copy[r * a->head_dim + d] = tile[r * a->head_dim + d] & bits;
        }
        return copy;
    }
    memset(copy, 0, (size_t)(rows * a->value_stride * 4));
    for (int64_t token = first; token < first + TILE; token++) {
        if (!sees(item, token)) continue;
        int64_t offset = token % a->batch->block_tokens, i = token - first;
        const void *value = value_in_head(&a->cache, head_of_token(a, item, token, VALUES), offset, &stride);
        char *to = (char *)copy + (dtype == BFLOAT16 ? (i / 2 * a->value_stride * 2 + i % 2) * 2 : i * a->value_stride * 4);
        copy_elements(to, 4 / element_bytes, value, stride, a->head_dim, element_bytes);
    }
    return copy;
}
