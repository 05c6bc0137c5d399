/* silu_mul of kernels/interface.py: silu(g) * u = g * u / (1 + e^-g). */
#include "exponential.h"
#include "parallel.h"

typedef struct {
    const void *gate_up;
    void *out;
    int64_t rows, width; /* of `out` */
    int dtype;
} SiluMul;

INLINE void silu_mul_rows(const SiluMul *s, int64_t first, int64_t last, int dtype)
{
    const float log2_e = 0x1.715476p0f;
    for (int64_t row = first; row < last; row++) {
        int64_t gate = row * 2 * s->width, up = gate + s->width, to = row * s->width;
        for (int64_t i = 0; i < s->width; i += LANES) {
            int count = s->width - i < LANES ? (int)(s->width - i) : LANES;
            Floats g = load_upto(s->gate_up, gate + i, count, dtype), u = load_upto(s->gate_up, up + i, count, dtype);
            store_upto(s->out, to + i, g / (1.0f + exp2_of(g * -log2_e, dtype == BFLOAT16)) * u, count, dtype);
        }
    }
}

static void silu_mul_work(void *job)
{
    const SiluMul *s = job;
    int64_t first, last;
    my_share(s->rows, &first, &last);
    if (s->dtype == BFLOAT16) silu_mul_rows(s, first, last, BFLOAT16);
    else silu_mul_rows(s, first, last, FLOAT32);
}

void shoal_silu_mul(const void *gate_up, void *out, int64_t rows, int64_t width, int dtype)
{
    SiluMul s = {gate_up, out, rows, width, dtype};
    run_parallel(silu_mul_work, &s, 0, rows * width >= WORTH_SHARING / 2);
}
