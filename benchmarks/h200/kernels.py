"""The Triton kernels on one H200: right first, then microseconds and the fraction of what the card can do.

    PYTHONPATH=engine python3 benchmarks/h200/kernels.py [--check-only] [--skip-checks] [--only decode] [--variants]

A figure is the time of one call inside a CUDA graph of many calls that take turns on caches of more than 300 MB together,
so that nothing comes from the second-level cache; median of seven replays. "%" is of the copy rate, 4.28 TB/s, of which
reads alone reach 109 %; TFLOP/s count the visible pairs only. The plan of a decode step is made once a step, not a layer,
and has a line of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import kernel_checks
import torch
from kernel_cases import (
    DEVICE,
    LLAMA_8B,
    QWEN3_06B,
    Case,
    build,
    random_caches,
    repeat,
    rope_table,
    skewed,
    uniform,
)
from torch import Tensor

from shoal_engine.kernels.cuda import CudaKernels
from shoal_engine.kernels.interface import AttentionScale, HeadLayout
from shoal_engine.kernels.triton_decode import DecodeTiling, plan_for
from shoal_engine.kernels.triton_prefill import PrefillTiling

COPY_RATE = 4.28e12
ROTATED_BYTES = 300e6
MODELS = {"8B": (LLAMA_8B, 4096, 14336), "0.6B": (QWEN3_06B, 1024, 3072)}
LONG_TAIL = Case("1 x 64k + 31 x 4k", (1,) * 32, (65536, *repeat([4096], 31)))
DECODES = [uniform(b, c) for c in (1024, 8192) for b in (1, 8, 32, 128, 256)] + [uniform(64, 4096)]
SKEWED = [skewed(b, c) for c in (1024, 8192) for b in (8, 32, 128)] + [LONG_TAIL]
TUNED_ON = [uniform(1, 1024), uniform(1, 8192), uniform(8, 1024), uniform(32, 1024), uniform(64, 4096)]
TUNED_ON += [uniform(256, 1024), LONG_TAIL]
DECODE_TILINGS = [
    DecodeTiling(64, 2, 3, 264),
    DecodeTiling(64, 2, 3, 528),
    DecodeTiling(64, 2, 4, 528),
    DecodeTiling(64, 4, 3, 264),
    DecodeTiling(64, 4, 3, 528),
    DecodeTiling(128, 4, 2, 264),
    DecodeTiling(128, 4, 2, 528),
    DecodeTiling(32, 2, 4, 528),
]
PREFILLS = [
    Case("1k x 16", repeat([1024], 16), repeat([1024], 16)),
    Case("2k x 8", repeat([2048], 8), repeat([2048], 8)),
    Case("8k x 2", repeat([8192], 2), repeat([8192], 2)),
    Case("chunk 2k after 6k", (2048,), (8192,)),
    Case("chunk 512 after 8k", (512,), (8704,)),
    Case("16 chunks of 16 after 1k", repeat([16], 16), repeat([1040], 16)),
]
PREFILL_TILINGS = [
    PrefillTiling(128, 128, 8, 3),
    PrefillTiling(128, 128, 8, 2),
    PrefillTiling(128, 64, 8, 3),
    PrefillTiling(128, 64, 4, 3),
    PrefillTiling(64, 64, 4, 3),
    PrefillTiling(64, 128, 4, 2),
]


def microseconds(calls: list[Callable[[], object]]) -> float:
    """Of one call, in a graph of all of them; calls that are too few to fill a millisecond are repeated."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph, rounds = torch.cuda.CUDAGraph(), max(1, 24 // len(calls))
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    times = []
    for number in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if number >= 2:
            times.append(start.elapsed_time(end) * 1e3 / rounds / len(calls))
    return statistics.median(times)


def copies_for(num_bytes: float) -> int:
    return max(1, min(80, round(ROTATED_BYTES / num_bytes + 0.5)))


def attention_time(
    case: Case, layout: HeadLayout, block_tokens: int, kernels: CudaKernels, window: int | None = None
) -> float:
    batch, num_blocks = build(case, block_tokens)
    caches = random_caches(copies_for(case.kv_bytes(layout)), num_blocks, layout, block_tokens)
    q = torch.randn(case.tokens, layout.num_heads, layout.head_dim, device=DEVICE, dtype=torch.bfloat16)
    scale = AttentionScale(layout.head_dim**-0.5, window)
    return microseconds([lambda c=cache: kernels.attend(q, layout, batch, c, scale) for cache in caches])


def decode_table(cases: list[Case], block_tokens: int) -> None:
    print(f"\ndecode attention, block {block_tokens}, us (% of the copy rate) | plan us")
    for name, (layout, _, _) in MODELS.items():
        for case in cases:
            us = attention_time(case, layout, block_tokens, CudaKernels())
            batch, _ = build(case, block_tokens)
            plan = microseconds(
                [lambda b=batch, la=layout: plan_for(b, la, AttentionScale(1.0), DecodeTiling())]
            )
            share = case.kv_bytes(layout) / us * 1e6 / COPY_RATE
            print(f"{name:5} {case.name:18} {us:8.1f} ({share:4.0%}) | {plan:.1f}", flush=True)


def decode_variants(block_tokens: int) -> None:
    print(f"\ndecode variants, 8B, block {block_tokens}, us; tile/warps/stages/programs")
    print(" " * 18 + "".join(f"{c.name:>18}" for c in TUNED_ON))
    for tiling in DECODE_TILINGS:
        name = f"{tiling.tile_tokens}/{tiling.warps}/{tiling.stages}/{tiling.programs}"
        times = [attention_time(c, LLAMA_8B, block_tokens, CudaKernels(tiling)) for c in TUNED_ON]
        print(f"{name:18}" + "".join(f"{us:18.1f}" for us in times), flush=True)


def prefill_table(tilings: list[PrefillTiling | None], block_tokens: int) -> None:
    print(f"\nprefill attention, block {block_tokens}, TFLOP/s (us); m/n/warps/stages")
    print(" " * 22 + "".join(f"{c.name:>26}" for c in PREFILLS))
    for name, (layout, _, _) in MODELS.items():
        for tiling in tilings:
            label = (
                f"{tiling.block_m}/{tiling.block_n}/{tiling.warps}/{tiling.stages}" if tiling else "chosen"
            )
            cells = []
            for case in PREFILLS:
                try:
                    us = attention_time(case, layout, block_tokens, CudaKernels(prefill_tiling=tiling))
                except Exception as error:  # a tiling that does not fit is a result too
                    cells.append(f"{type(error).__name__:>26}")
                    continue
                cells.append(f"{case.flops(layout) / us / 1e6:14.0f} ({us:9.1f})")
            print(f"{name:5} {label:16}" + "".join(cells), flush=True)


def row_table() -> None:
    print("\nrow kernels, us (% of the copy rate), at tokens")
    tokens = (1, 32, 128, 256, 8192)
    print(" " * 22 + "".join(f"{t:>16}" for t in tokens))
    for name, (layout, hidden, intermediate) in MODELS.items():
        for kernel, calls in (
            ("rms_norm", lambda t, h=hidden: _norm_calls(t, h, False)),
            ("add_rms_norm", lambda t, h=hidden: _norm_calls(t, h, True)),
            ("silu_mul", lambda t, i=intermediate: _silu_calls(t, i)),
            ("rotate_and_store", lambda t, la=layout, n=name: _rotary_calls(t, la, n == "0.6B")),
        ):
            cells = []
            for count in tokens:
                work, num_bytes = calls(count)
                us = microseconds(work)
                cells.append(f"{us:8.2f} ({num_bytes / us * 1e6 / COPY_RATE:4.0%})")
            print(f"{name:5} {kernel:16}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


def _norm_calls(tokens: int, hidden: int, has_residual: bool) -> tuple[list[Callable[[], object]], int]:
    kernels, num_bytes = CudaKernels(), tokens * hidden * 2 * (4 if has_residual else 2)
    weight = torch.randn(hidden, device=DEVICE, dtype=torch.bfloat16)
    rows = [_random(tokens, hidden) for _ in range(copies_for(num_bytes))]
    residual = _random(tokens, hidden)
    if has_residual:
        return [lambda x=x: kernels.add_rms_norm(x, residual, weight, 1e-5) for x in rows], num_bytes
    return [lambda x=x: kernels.rms_norm(x, weight, 1e-5) for x in rows], num_bytes


def _silu_calls(tokens: int, intermediate: int) -> tuple[list[Callable[[], object]], int]:
    kernels, num_bytes = CudaKernels(), tokens * intermediate * 2 * 3
    rows = [_random(tokens, 2 * intermediate) for _ in range(copies_for(num_bytes))]
    return [lambda x=x: kernels.silu_mul(x) for x in rows], num_bytes


def _rotary_calls(tokens: int, layout: HeadLayout, has_norm: bool) -> tuple[list[Callable[[], object]], int]:
    kernels, num_bytes = CudaKernels(), tokens * layout.qkv_size * 2 * 2
    batch, num_blocks = build(Case("", (tokens,), (tokens,)), 64)
    cache = random_caches(1, num_blocks, layout, 64)[0]
    rope = rope_table(tokens, layout.head_dim)
    norms = [torch.randn(layout.head_dim, device=DEVICE, dtype=torch.bfloat16)] * 2 if has_norm else []
    rows = [_random(tokens, layout.qkv_size) for _ in range(copies_for(num_bytes))]
    return [
        lambda x=x: kernels.rotate_and_store(x, layout, rope, batch, cache, *norms) for x in rows
    ], num_bytes


def _random(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, device=DEVICE, dtype=torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--skip-checks", action="store_true")
    parser.add_argument("--shard", default="0/1", help="only these checks, as 2/8: compiling takes minutes")
    parser.add_argument("--variants", action="store_true", help="also every tiling")
    parser.add_argument("--only", choices=["rows", "decode", "prefill"])
    parser.add_argument("--block-tokens", type=int, nargs="+", default=[64])
    options = parser.parse_args()
    began = time.monotonic()
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    failures = 0
    if not options.skip_checks:
        failures = kernel_checks.run(*map(int, options.shard.split("/")))
        print(f"checked in {time.monotonic() - began:.0f} s")
    if not options.check_only:
        for block_tokens in options.block_tokens:
            if options.only in (None, "prefill"):
                prefill_table(PREFILL_TILINGS if options.variants else [None], block_tokens)
            if options.only in (None, "decode"):
                if options.variants:
                    decode_variants(block_tokens)
                decode_table(DECODES + SKEWED, block_tokens)
        if options.only in (None, "rows"):
            row_table()
    print(f"done in {time.monotonic() - began:.0f} s")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
