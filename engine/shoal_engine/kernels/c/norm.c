/* rms_norm and add_rms_norm of kernels/interface.py. */
#include "parallel.h"
#include "vectors.h"

typedef struct {
    const void *x;
    void *residual; /* NULL: normalise x itself */
    const void *weight;
    void *out;
    int64_t rows, width;
    float eps;
    int dtype, weight_dtype;
} Norm;

/* from += x when x is given, rounded as it is stored; returns the sum of squares of the result. */
INLINE float add_and_square(const void *x, void *from, int64_t width, int dtype)
{
    Floats squares = {0};
    for (int64_t i = 0; i < width; i += LANES) {
        int count = width - i < LANES ? (int)(width - i) : LANES;
        Floats value = load_upto(from, i, count, dtype);
        if (x) {
            value += load_upto(x, i, count, dtype);
            if (dtype == BFLOAT16) value = widen(narrow(value));
            store_upto(from, i, value, count, dtype);
        }
        squares += value * value;
    }
    return sum_of(squares);
}

INLINE void scale_by(const void *from, const void *weight, void *out, int64_t width, float scale, int dtype, int weight_dtype)
{
    for (int64_t i = 0; i < width; i += LANES) {
        int count = width - i < LANES ? (int)(width - i) : LANES;
        Floats value = load_upto(from, i, count, dtype) * scale;
        store_upto(out, i, value * load_upto(weight, i, count, weight_dtype), count, dtype);
    }
}

INLINE void norm_rows(const Norm *n, int64_t first, int64_t last, int dtype, int weight_dtype)
{
    int64_t row_bytes = n->width * (dtype == BFLOAT16 ? 2 : 4);
    for (int64_t row = first; row < last; row++) {
        const char *x = (const char *)n->x + row * row_bytes;
        char *from = n->residual ? (char *)n->residual + row * row_bytes : (char *)x;
        float squares = add_and_square(n->residual ? x : NULL, from, n->width, dtype);
        float scale = 1.0f / sqrtf(squares / (float)n->width + n->eps);
        scale_by(from, n->weight, (char *)n->out + row * row_bytes, n->width, scale, dtype, weight_dtype);
    }
}

static void norm_work(void *job)
{
    const Norm *n = job;
    int64_t first, last;
    my_share(n->rows, &first, &last);
    if (n->dtype == FLOAT32 && n->weight_dtype == FLOAT32) norm_rows(n, first, last, FLOAT32, FLOAT32);
    else if (n->dtype == FLOAT32) norm_rows(n, first, last, FLOAT32, BFLOAT16);
    else if (n->weight_dtype == FLOAT32) norm_rows(n, first, last, BFLOAT16, FLOAT32);
    else norm_rows(n, first, last, BFLOAT16, BFLOAT16);
}

void shoal_rms_norm(const void *x, void *residual, const void *weight, void *out, int64_t rows, int64_t width, float eps,
                    int dtype, int weight_dtype)
{
    Norm n = {x, residual, weight, out, rows, width, eps, dtype, weight_dtype};
    run_parallel(norm_work, &n, 0, rows * width >= WORTH_SHARING);
}
