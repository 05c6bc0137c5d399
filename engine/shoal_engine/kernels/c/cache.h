/* How keys and values lie inside the cache [num_blocks, 2, num_kv_heads, block_tokens, D]. Knows no attention.
 *
 * The order within one [block_tokens, D] is the kernels' own, chosen so that attention multiplies straight from the
 * cache. It counts in 32-bit words: a float, or two bfloat16 (the first in the low half).
 *   keys    tiles of TILE tokens (block_tokens when the block is smaller): [word of the head][token]
 *   values  float32: [token][element]; bfloat16: [token pair][element], words (token 2i, token 2i + 1)
 * Blocks hold 1, 2, 4, 8 or a multiple of TILE tokens; values of blocks of a single token lie in plain order.
 */
#pragma once

#include "vectors.h"

enum { TILE = 16, KEYS = 0, VALUES = 1 };

typedef struct {
    char *blocks;
    int64_t num_kv_heads, block_tokens, head_dim;
    int dtype;
} Cache;

INLINE int64_t words_per_head(int64_t head_dim, int dtype) { return dtype == BFLOAT16 ? head_dim / 2 : head_dim; }

/* Rows of words that hold the values of a tile. */
INLINE int64_t value_rows_per_tile(int dtype) { return dtype == BFLOAT16 ? TILE / 2 : TILE; }

INLINE uint32_t *head_in_block(const Cache *c, int64_t block, int kind, int64_t head)
{
    int64_t words = c->block_tokens * c->head_dim * (c->dtype == BFLOAT16 ? 2 : 4) / 4;
    return (uint32_t *)c->blocks + ((block * 2 + kind) * c->num_kv_heads + head) * words;
}

/* Word 0 of a key; the next ones follow at a distance of *stride. */
INLINE uint32_t *key_in_head(const Cache *c, uint32_t *head, int64_t offset, int64_t *stride)
{
    *stride = c->block_tokens < TILE ? c->block_tokens : TILE;
    return head + offset / *stride * *stride * words_per_head(c->head_dim, c->dtype) + offset % *stride;
}

/* Element 0 of a value, in units of its dtype; the next ones follow at a distance of *stride. */
INLINE void *value_in_head(const Cache *c, uint32_t *head, int64_t offset, int64_t *stride)
{
    *stride = 1;
    if (c->dtype == FLOAT32) return head + offset * c->head_dim;
    if (c->block_tokens == 1) return head;
    *stride = 2;
    return (uint16_t *)(head + offset / 2 * c->head_dim) + offset % 2;
}

INLINE void copy_elements(void *to, int64_t to_stride, const void *from, int64_t from_stride, int64_t count, int element_bytes)
{
    if (element_bytes == 2)
        for (int64_t i = 0; i < count; i++) ((uint16_t *)to)[i * to_stride] = ((const uint16_t *)from)[i * from_stride];
    else
        for (int64_t i = 0; i < count; i++) ((uint32_t *)to)[i * to_stride] = ((const uint32_t *)from)[i * from_stride];
}
