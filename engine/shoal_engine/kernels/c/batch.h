/* AttentionBatch of kernels/interface.py as C reads it. `_CBatch` in kernels/cpu.py has the same fields in the same order. */
#pragma once

#include <stdint.h>

typedef struct {
    const int32_t *query_start, *context_lens, *tables;
    const int64_t *slots, *positions;
    int64_t table_stride, num_requests, num_tokens, max_query_len, max_context_len, block_tokens, num_threads;
} Batch;
