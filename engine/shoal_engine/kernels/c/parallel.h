/* Fork and join on the threads that torch already has. Knows nothing of the work.
 *
 * These are entry points of libgomp's stable ABI (LLVM's and Intel's OpenMP export them too). Calling them by name
 * instead of through `#pragma omp` lets any compiler build this, and `cpu_build.py` links the very library that torch
 * loaded: one pool of threads, already awake between torch's matrix products.
 */
#pragma once

#include <stdint.h>

extern void GOMP_parallel(void (*work)(void *), void *job, unsigned num_threads, unsigned flags);
extern void GOMP_barrier(void);
extern int omp_get_num_threads(void);
extern int omp_get_thread_num(void);

/* Row kernels with fewer elements than this finish before another thread would have woken up. */
enum { WORTH_SHARING = 32768 };

/* Call work(job) on `num_threads` threads (0: as many as torch uses), or only on this one when it is not worth it.
 * Nothing between: libgomp ends the threads that a smaller team leaves over, and starting them again costs 50 us. */
static inline void run_parallel(void (*work)(void *), void *job, int64_t num_threads, int worth_it)
{
    if (worth_it) GOMP_parallel(work, job, (unsigned)num_threads, 0);
    else work(job);
}

/* Rows first..last-1 of this thread when `count` rows are shared evenly; all of them outside a parallel region. */
static inline void my_share(int64_t count, int64_t *first, int64_t *last)
{
    int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
    *first = count * me / threads;
    *last = count * (me + 1) / threads;
}
