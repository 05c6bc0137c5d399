/* rotate_and_store of kernels/interface.py. */
#include "batch.h"
#include "cache.h"
#include "parallel.h"

typedef struct {
    const void *qkv;
    const float *angles;
    const Batch *batch;
    Cache cache;
    void *q_out;
    const void *q_norm, *k_norm; /* NULL: heads are not normalised */
    int64_t num_heads, num_kv_heads, head_dim;
    float eps;
    int dtype, norm_dtype;
} Rotary;

INLINE float head_scale(const void *head, int64_t head_dim, float eps, int dtype)
{
    Floats squares = {0};
    for (int64_t i = 0; i < head_dim; i += LANES) {
        Floats x = load_upto(head, i, head_dim - i < LANES ? (int)(head_dim - i) : LANES, dtype);
        squares += x * x;
    }
    return 1.0f / sqrtf(sum_of(squares) / (float)head_dim + eps);
}

/* (a, b) -> (a cos - b sin, b cos + a sin), a and b the halves of the head. */
INLINE void rotate(const Rotary *r, const void *head, const float *angles, const void *norm, void *to, int dtype)
{
    int64_t half = r->head_dim / 2;
    float scale = norm ? head_scale(head, r->head_dim, r->eps, dtype) : 1.0f;
    for (int64_t i = 0; i < half; i += LANES) {
        int count = half - i < LANES ? (int)(half - i) : LANES;
        Floats a = load_upto(head, i, count, dtype), b = load_upto(head, half + i, count, dtype);
        if (norm) {
            a *= scale * load_upto(norm, i, count, r->norm_dtype);
            b *= scale * load_upto(norm, half + i, count, r->norm_dtype);
        }
        Floats cos = load_upto(angles, i, count, FLOAT32), sin = load_upto(angles, half + i, count, FLOAT32);
        store_upto(to, i, a * cos - b * sin, count, dtype);
        store_upto(to, half + i, b * cos + a * sin, count, dtype);
    }
}

/* Rotate one token's keys into the cache, and copy its values. `kv` are its key heads, then its value heads. */
INLINE void store_token(const Rotary *r, const char *kv, const float *angles, int64_t slot, int dtype)
{
    const Cache *cache = &r->cache;
    const int element_bytes = dtype == BFLOAT16 ? 2 : 4;
    int64_t head_bytes = r->head_dim * element_bytes, words = words_per_head(r->head_dim, dtype), stride;
    int64_t block = slot / cache->block_tokens, offset = slot % cache->block_tokens;
    uint32_t key[r->head_dim];
    for (int64_t h = 0; h < r->num_kv_heads; h++) {
        rotate(r, kv + h * head_bytes, angles, r->k_norm, key, dtype);
        uint32_t *key_to = key_in_head(cache, head_in_block(cache, block, KEYS, h), offset, &stride);
        copy_elements(key_to, stride, key, 1, words, 4);
        void *value_to = value_in_head(cache, head_in_block(cache, block, VALUES, h), offset, &stride);
        copy_elements(value_to, stride, kv + (r->num_kv_heads + h) * head_bytes, 1, r->head_dim, element_bytes);
    }
}

INLINE void rotate_tokens(const Rotary *r, int64_t first, int64_t last, int dtype)
{
    int64_t head_bytes = r->head_dim * (dtype == BFLOAT16 ? 2 : 4), token_heads = r->num_heads + 2 * r->num_kv_heads;
    for (int64_t token = first; token < last; token++) {
        const char *head = (const char *)r->qkv + token * token_heads * head_bytes;
        const float *angles = r->angles + r->batch->positions[token] * r->head_dim;
        char *q_out = (char *)r->q_out + token * r->num_heads * head_bytes;
        for (int64_t h = 0; h < r->num_heads; h++, head += head_bytes, q_out += head_bytes)
            rotate(r, head, angles, r->q_norm, q_out, dtype);
        int64_t slot = r->batch->slots[token]; /* negative: padding, it has no place in the cache */
        if (slot >= 0) store_token(r, head, angles, slot, dtype);
    }
}

static void rotary_work(void *job)
{
    const Rotary *r = job;
    int64_t first, last;
    my_share(r->batch->num_tokens, &first, &last);
    if (r->dtype == BFLOAT16) rotate_tokens(r, first, last, BFLOAT16);
    else rotate_tokens(r, first, last, FLOAT32);
}

void shoal_rotate_and_store(const void *qkv, const float *angles, const Batch *batch, void *blocks, void *q_out,
                            const void *q_norm, const void *k_norm, int64_t num_heads, int64_t num_kv_heads,
                            int64_t head_dim, float eps, int dtype, int norm_dtype)
{
    Cache cache = {blocks, num_kv_heads, batch->block_tokens, head_dim, dtype};
    Rotary r = {qkv, angles, batch, cache, q_out, q_norm, k_norm, num_heads, num_kv_heads, head_dim, eps, dtype, norm_dtype};
    run_parallel(rotary_work, &r, 0, batch->num_tokens * (num_heads + 2 * num_kv_heads) * head_dim >= WORTH_SHARING);
}
