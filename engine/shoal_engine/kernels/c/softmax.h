/* Softmax in parts: weights of one span of tokens, and the merging of spans. Knows neither caches nor requests. */
#pragma once

#include "exponential.h"

/* Of some query rows over some tokens: the largest score, sum of e^(score - largest), and the values weighted by it.
 * No visible token: -inf, 0 and zeros. */
typedef struct {
    float *largest, *sum; /* [rows, padded to LANES] */
    float *values;        /* [rows][value_stride] */
} Partial;

/* The base of no visible score is 0, so that -inf - base stays -inf. */
INLINE float exponent_base(float largest) { return largest == -INFINITY ? 0.0f : largest; }

/* scores[0..count-1] -> weights e^(scale (score - largest)), 0 outside from..upto-1; as bfloat16 in place when `dtype`
 * is. `count` is a multiple of LANES; `scale` includes log2(e). Returns through *largest and *sum. */
INLINE void softmax_row(float *scores, int64_t count, int64_t from, int64_t upto, float scale, float *largest, float *sum,
                        int dtype)
{
    const Ints lanes = lane_numbers();
    Floats highest = splat(-INFINITY), total = {0};
    for (int64_t i = 0; i < count; i += LANES) {
        Floats x = load(scores, i, FLOAT32);
        if (i < from || i + LANES > upto) {
            Ints at = lanes + (int32_t)i;
            x = choose((at >= (int32_t)from) & (at < (int32_t)upto), x, splat(-INFINITY));
            store(scores, i, x, FLOAT32);
        }
        highest = larger(x, highest);
    }
    *largest = largest_of(highest);
    float base = exponent_base(*largest);
    for (int64_t i = 0; i < count; i += LANES) {
        Floats weight = exp2_of((load(scores, i, FLOAT32) - base) * scale, dtype == BFLOAT16);
        if (dtype == BFLOAT16) {
            /* Half as wide: writes stay behind reads. The sum counts what will be multiplied, not what was rounded away. */
            Halves rounded = narrow(weight);
            memcpy((uint16_t *)scores + i, &rounded, sizeof rounded);
            weight = widen(rounded);
        } else {
            store(scores, i, weight, FLOAT32);
        }
        total += weight;
    }
    *sum = sum_of(total);
}

/* into = into and from together, whichever order they were computed in; spans are merged from the first to the last. */
INLINE void merge_partials(const Partial *into, const Partial *from, int64_t rows, int64_t value_stride, float scale)
{
    for (int64_t r = 0; r < rows; r++) {
        float largest = into->largest[r] > from->largest[r] ? into->largest[r] : from->largest[r];
        float base = exponent_base(largest);
        Floats factors = exp2_of((Floats){(into->largest[r] - base) * scale, (from->largest[r] - base) * scale}, 0);
        float keep = factors[0], add = factors[1];
        into->largest[r] = largest;
        into->sum[r] = into->sum[r] * keep + from->sum[r] * add;
        for (int64_t i = r * value_stride; i < (r + 1) * value_stride; i += LANES)
            store(into->values, i, load(into->values, i, FLOAT32) * keep + load(from->values, i, FLOAT32) * add, FLOAT32);
    }
}
