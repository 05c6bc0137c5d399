"""Sampling on a GPU: microseconds of one call, beside torch's operations and the device-independent sampler, in one run.

    python benchmarks/h200/sampling.py [--rows 1 32 256] [--vocab 151936] [--dtypes float32 bfloat16]

Every case is first checked: tokens against `draws.py` on the same logits and seeds, in which a difference is only
allowed where a uniform number falls on a boundary (at most one row in a hundred), and the kept sets against a float64
sort. Ours and torch's kernels are timed as replays of a CUDA graph; `draws.py` reads back from the device, so its time
is that of eager calls. The share is of the measured read bandwidth, reading all logits once.
"""

from __future__ import annotations

import argparse
import statistics
import time
import traceback
from collections.abc import Callable

import torch
from graph_clock import copies_past_the_cache, read_bandwidth, us_per_call
from sampling_checks import CASES, Case, by_draws, check, check_distribution, logits, parameters

from shoal_engine.kernels.triton_sampling import SamplingSpace, sample


def eager_us(call: Callable[[], object]) -> float:
    times: list[float] = []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times[2:])


def measure(case: Case, rows: int, vocab: int, dtype: torch.dtype, bandwidth: float) -> None:
    x = logits(case, rows, vocab, dtype)
    asked, space = parameters(rows, vocab, case.options), SamplingSpace(rows, vocab, torch.device("cuda"))
    note = check(case, x, asked, space)
    batches = copies_past_the_cache(x)[:64]
    truncated = bool({"top_k", "top_p", "min_p", "mixed"} & set(case.options))
    us = us_per_call(lambda one: sample(one, asked, space, truncated), batches)
    peer = us_per_call(case.peer, batches[:16])
    before = eager_us(lambda: by_draws(x, asked))
    floor = x.numel() * x.element_size() / bandwidth * 1e6
    print(
        f"{str(dtype)[6:]:<8} {rows:>4} {case.name:<21} {us:7.1f}  {floor / us:5.0%}"
        f" {peer:9.1f} {before:9.1f}  {note}",
        flush=True,
    )


def attempt(work: Callable[..., None], *arguments: object) -> None:
    """One case that fails does not cost the others their numbers."""
    try:
        work(*arguments)
    except Exception:
        print(f"{arguments}: {traceback.format_exc(limit=-3)}", flush=True)


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--vocab", type=int, nargs="+", default=[151936])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    torch.manual_seed(0)
    bandwidth = read_bandwidth()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, reads at {bandwidth / 1e12:.2f} TB/s")
    for vocab in options.vocab:
        attempt(check_distribution, vocab)
        print(f"vocabulary {vocab}; ours, us; share of bandwidth; torch; draws.py eager")
        for dtype in (getattr(torch, name) for name in options.dtypes):
            for rows in options.rows:
                for case in CASES:
                    attempt(measure, case, rows, vocab, dtype, bandwidth)
    print(f"took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
