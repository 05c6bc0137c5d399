"""Every Triton kernel on the GPU against the torch twin in float32: odd shapes, poisoned outputs and caches, both dtypes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from kernel_cases import (
    DEVICE,
    LLAMA_8B,
    QWEN3_06B,
    Case,
    build,
    poisoned_cache,
    relative_error,
    rope_table,
    widened,
)
from torch import Tensor

from shoal_engine.kernels.cuda import CudaKernels
from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadInput, HeadLayout
from shoal_engine.kernels.reference import ReferenceKernels
from shoal_engine.kernels.triton_decode import DecodeTiling
from shoal_engine.kernels.triton_norm_rounding import norm_groups, norm_rows
from shoal_engine.kernels.triton_prefill import PrefillTiling
from shoal_engine.kernels.triton_quantise import (
    quantise_groups,
    quantise_groups_reference,
    quantise_rows,
    quantise_rows_reference,
    silu_mul_rows,
)

TWIN = ReferenceKernels()
# So that compute-sanitizer sees the end of every tensor; nothing can be captured then.
ALLOCATES_PLAINLY = os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") == "1"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-3}
CASES = [
    Case("edges", (1,) * 8, (1, 15, 16, 17, 63, 64, 65, 300)),
    Case("long and short", (1,) * 3, (5000, 1, 129)),
    Case("padding rows", (1,) * 4, (100, 65, 0, 0)),
    Case("prefill", (1000, 64, 129, 2), (1000, 64, 129, 2)),
    Case("chunks after a prefix", (100, 1, 257), (1100, 65, 2000)),
    Case("mixed", (1, 1, 1, 200, 33), (700, 1, 64, 200, 900)),
]

FRESH = [
    Case("one fresh", (8192,), (8192,)),
    Case("fresh with a tail", (1, 2100, 2100, 30), (70, 2100, 2100, 500)),
    Case("short fresh together", (1024, 1024, 1024), (1024, 1024, 1024)),
]

SHARED = [
    Case("few share", (1,) * 5, (700, 300, 513, 290, 5000), 272),
    Case("all share", (1,) * 50, (*range(600, 640), *range(1200, 1210)), 528),
]

DECODES = [
    CASES[0], CASES[1], CASES[2],
    Case("some rows", (1,) * 64, tuple(1 + 97 * row % 700 for row in range(64))),
    Case("many rows", (1,) * 200, tuple(1 + 53 * row % 400 for row in range(200))),
    Case("one long among short", (1,) * 100, (30000, *range(1, 100))),
]  # fmt: skip

Errors = Iterator[tuple[str, float, float]]  # name, error, what is allowed
Jobs = Iterator[Callable[[], Errors]]


def run(group: str) -> int:
    """Print what is off; return how many. Compiling is most of the time, so that each group has its own process."""
    failures = total = 0
    for job in GROUPS[group]():
        torch.manual_seed(0)
        for name, error, tolerance in job():
            total += 1
            if not error <= tolerance:
                failures += 1
                print(f"WRONG {name}: {error:.2e}, allowed {tolerance:.0e}", flush=True)
    print(f"{total - failures} of {total} within tolerance", flush=True)
    return failures


def _of_layout(
    layout: HeadLayout,
    dtype: torch.dtype,
    block_tokens: int,
    window: int | None,
    cache_dtype: torch.dtype | None = None,
) -> Jobs:
    scale = AttentionScale(layout.head_dim**-0.5, window)
    for case in CASES:
        yield partial(_attention, case, layout, dtype, block_tokens, scale, CudaKernels(), cache_dtype)


def _of_capped_logits() -> Jobs:
    sinks = torch.linspace(-3.0, 6.0, 32, device=DEVICE)
    scale = AttentionScale(128**-0.5, None, 5.0, sinks)
    for case in CASES:
        yield partial(_attention, case, LLAMA_8B, torch.bfloat16, 16, scale, CudaKernels())


def _of_fresh_prompts() -> Jobs:
    """By cuDNN, but for the tails."""
    for case in FRESH:
        for layout in (LLAMA_8B, HeadLayout(14, 2, 64)):
            scale = AttentionScale(layout.head_dim**-0.5)
            yield partial(_attention, case, layout, torch.bfloat16, 16, scale, CudaKernels())
    scale, float8 = AttentionScale(128**-0.5), torch.float8_e4m3fn
    yield partial(_attention, FRESH[1], QWEN3_06B, torch.bfloat16, 16, scale, CudaKernels(), float8)


def _of_shared_prefixes() -> Jobs:
    for case in SHARED:
        for layout, cache_dtype in ((LLAMA_8B, None), (QWEN3_06B, None), (LLAMA_8B, torch.float8_e4m3fn)):
            scale = AttentionScale(layout.head_dim**-0.5)
            yield partial(_attention, case, layout, torch.bfloat16, 16, scale, CudaKernels(), cache_dtype)


def _of_decodes_alone(cache_dtype: torch.dtype | None = None) -> Jobs:
    """What `gluon_decode` serves: groups of heads, pages and windows, few rows of each and many of some."""
    heads = ((16, 8, 128), (32, 8, 128), (14, 2, 64), (3, 3, 128), (64, 8, 128), (7, 1, 128))
    for index, (layout, block_tokens) in enumerate(zip(heads, (16, 64, 8, 4, 128, 24), strict=True)):
        few, many = DECODES[:3], DECODES[3 + index % 3]
        for case, window in (
            (few[0], None),
            (few[1], 1),
            (few[2], 64),
            (few[1], None),
            (many, None),
            (many, 100),
        ):
            scale = AttentionScale(layout[2] ** -0.5, window)
            yield partial(
                _attention, case, HeadLayout(*layout), torch.bfloat16, block_tokens, scale, CudaKernels(), cache_dtype
            )  # fmt: skip


def _of_tilings() -> Jobs:
    scale = AttentionScale(128**-0.5)
    for tiling in (PrefillTiling(128, 64, 4, 3), PrefillTiling(64, 64, 4, 3), PrefillTiling(128, 128, 8, 2)):
        kernels = CudaKernels(prefill_tiling=tiling)
        yield partial(_attention, CASES[4], QWEN3_06B, torch.bfloat16, 64, scale, kernels)
    for decode in (DecodeTiling(128, 4, 2, 264), DecodeTiling(64, 4, 3, 528)):
        yield partial(_attention, CASES[1], LLAMA_8B, torch.bfloat16, 64, scale, CudaKernels(decode))


def _rows() -> Errors:
    kernels = CudaKernels()
    for dtype in (torch.float32, torch.bfloat16):
        for rows, width in ((1, 4096), (33, 1024), (5, 3072), (7, 577), (300, 14336)):
            x, residual = (torch.randn(rows, width, device=DEVICE, dtype=dtype) for _ in range(2))
            weight = torch.randn(width, device=DEVICE, dtype=dtype)
            name, allowed = f"{rows}x{width} {dtype}", TOLERANCE[dtype]
            with poisoned_outputs():
                normed = kernels.rms_norm(x, weight, 1e-5)
                wide = torch.cat((x, residual), dim=1)
                gated = kernels.silu_mul(wide)
                summed = residual.clone()
                normed_sum = kernels.add_rms_norm(x, summed, weight, 1e-5)
            twin_sum = residual.clone()
            want = TWIN.add_rms_norm(x, twin_sum, weight, 1e-5)
            yield f"rms_norm {name}", relative_error(normed, TWIN.rms_norm(x.float(), weight, 1e-5)), allowed
            yield f"add_rms_norm {name}", relative_error(normed_sum, want), allowed
            yield f"residual {name}", float(not torch.equal(summed, twin_sum)), 0.0
            yield f"silu_mul {name}", relative_error(gated, TWIN.silu_mul(wide.float())), allowed


def _rounded_rows() -> Errors:
    """Rounded to float8 by kernels, and by their twins after one another: the worst row."""
    for rows, width in ((1, 4096), (33, 1024), (6, 128), (300, 14336)):
        x, residual = (torch.randn(rows, width, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
        x[rows // 2] *= 1000.0
        weight, gate_up = torch.rand(width, device=DEVICE).bfloat16(), torch.cat((x, residual), dim=1)
        twin_sum, sums = residual.clone(), [residual.clone() for _ in range(2)]
        normed = TWIN.add_rms_norm(x, twin_sum, weight, 1e-5)
        gated = TWIN.silu_mul(gate_up.float()).bfloat16()
        with poisoned_outputs():
            pairs = {
                "quantise_rows": (quantise_rows(x), quantise_rows_reference(x)),
                "quantise_groups": (quantise_groups(x), quantise_groups_reference(x)),
                "silu_mul_rows": (silu_mul_rows(gate_up), quantise_rows_reference(gated)),
                "norm_rows": (norm_rows(x, sums[0], weight, 1e-5), quantise_rows_reference(normed)),
                "norm_groups": (norm_groups(x, sums[1], weight, 1e-5), quantise_groups_reference(normed)),
            }
        for name, (got, want) in pairs.items():
            exact = widened(*want)[:rows]
            error = (widened(*got)[:rows] - exact).norm(dim=1) / exact.norm(dim=1)
            yield f"{name} {rows}x{width}", float(error.max()), TOLERANCE[torch.bfloat16]
        for total in sums:
            yield f"residual {rows}x{width}", float(not torch.equal(total, twin_sum)), 0.0


def _attention(
    case: Case,
    layout: HeadLayout,
    dtype: torch.dtype,
    block_tokens: int,
    scale: AttentionScale,
    kernels: CudaKernels,
    cache_dtype: torch.dtype | None = None,
) -> Errors:
    """Rotation and write, then attention: twice eagerly and once in a graph, which must agree to the bit."""
    batch, num_blocks = build(case, block_tokens)
    cache = poisoned_cache(case, batch, num_blocks, layout, cache_dtype or dtype)
    name = f"{case.name} {layout} cache {cache.dtype} block {block_tokens} {scale}"
    qkv = torch.randn(case.tokens, layout.qkv_size, device=DEVICE, dtype=dtype)
    rope = rope_table(max(case.contexts), layout.head_dim)
    q_norm, k_norm = (torch.randn(layout.head_dim, device=DEVICE, dtype=dtype) for _ in range(2))
    twin_cache, new_cache = cache.clone(), cache.clone()
    with poisoned_outputs():
        q = kernels.rotate_and_store(qkv, layout, rope, batch, cache, q_norm, k_norm)
    want = TWIN.rotate_and_store(qkv, layout, rope, batch, twin_cache, q_norm, k_norm)
    wide, twin_wide = cache.float().nan_to_num(9.0), twin_cache.float().nan_to_num(9.0)
    yield f"q of {name}", relative_error(q, want), TOLERANCE[dtype]
    # Sums that differ in their last bit may be rounded to another float8.
    yield f"cache of {name}", relative_error(wide, twin_wide), 1e-2 if cache_dtype else 4e-3
    yield f"NaN of {name}", float(not torch.equal(cache.float().isnan(), twin_cache.float().isnan())), 0.0

    real = sum(context > 0 for context in case.contexts)
    rows = sum(case.queries[:real])
    shown = replace(batch, query_start=batch.query_start[: real + 1], context_lens=batch.context_lens[:real])
    want = TWIN.attend(q[:rows].float(), layout, shown, cache.float().nan_to_num(0.0), scale)
    with poisoned_outputs():
        got = kernels.attend(q, layout, batch, cache, scale)
        again = kernels.attend(q, layout, batch, cache, scale)
    yield f"attend {name}", relative_error(got[:rows], want), TOLERANCE[dtype]
    yield f"worst of {name}", float((got[:rows].float() - want).abs().max()), 2e-2
    yield f"padding of {name}", float(not bool((got[rows:] == 0).all())), 0.0
    yield f"rerun of {name}", float(not torch.equal(got, again)), 0.0
    heads = HeadInput(rope, q_norm, k_norm)
    with poisoned_outputs():
        both = [kernels.attend_new(qkv, layout, heads, batch, new_cache, scale) for _ in range(2)]
    yield f"both at once of {name}", relative_error(both[0][:rows], want), TOLERANCE[dtype]
    yield f"padding of both {name}", float(not bool((both[0][rows:] == 0).all())), 0.0
    yield f"rerun of both {name}", float(not torch.equal(*both)), 0.0
    wide = new_cache.float().nan_to_num(9.0)
    yield f"cache of both {name}", relative_error(wide, twin_wide), 1e-2 if cache_dtype else 4e-3
    yield f"NaN of both {name}", float(not torch.equal(new_cache.float().isnan(), cache.float().isnan())), 0.0
    if not ALLOCATES_PLAINLY:
        captured = _captured(kernels, batch, lambda: kernels.attend(q, layout, batch, cache, scale))
        yield f"graph of {name}", float(not torch.equal(got, captured())), 0.0
        step = partial(kernels.attend_new, qkv, layout, heads, batch, new_cache, scale)
        captured = _captured(kernels, batch, step)
        yield f"graph of both {name}", float(not torch.equal(both[0], captured())), 0.0
        if batch.num_decodes == batch.num_requests:
            batch.context_lens.copy_((batch.context_lens + 1) // 2)  # a graph must not remember the plan
            kernels.begin_step(batch)
            yield f"shorter in a graph {name}", float(not torch.equal(captured(), step())), 0.0


def _captured(
    kernels: CudaKernels, batch: AttentionBatch, call: Callable[[], Tensor]
) -> Callable[[], Tensor]:
    """Replays a recording of `call` twice, and returns the result of the second time."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.begin_step(batch)
        result = call()
    return partial(_replayed, graph, result)


def _replayed(graph: torch.cuda.CUDAGraph, result: Tensor) -> Tensor:
    result.fill_(float("nan"))
    graph.replay()
    result.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    return result.clone()


@contextmanager
def poisoned_outputs() -> Iterator[None]:
    """What torch leaves uninitialised is NaN, so that an element nobody wrote is seen."""
    new_empty, empty_like = Tensor.new_empty, torch.empty_like

    def poisoned(tensor: Tensor) -> Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    Tensor.new_empty = lambda *a, **k: poisoned(new_empty(*a, **k))  # type: ignore[method-assign]
    torch.empty_like = lambda *a, **k: poisoned(empty_like(*a, **k))
    try:
        yield
    finally:
        Tensor.new_empty, torch.empty_like = new_empty, empty_like  # type: ignore[method-assign]


GROUPS: dict[str, Callable[[], Jobs]] = {
    "rows": lambda: iter([_rows]),
    "rounded rows": lambda: iter([_rounded_rows]),
    "8B": partial(_of_layout, LLAMA_8B, torch.bfloat16, 16, None),
    "8B window": partial(_of_layout, LLAMA_8B, torch.bfloat16, 128, 48),
    "0.6B": partial(_of_layout, QWEN3_06B, torch.bfloat16, 64, None),
    "heads of 64": partial(_of_layout, HeadLayout(14, 2, 64), torch.bfloat16, 16, None),
    "heads of 96": partial(_of_layout, HeadLayout(3, 3, 96), torch.bfloat16, 8, 300),
    "heads of 256": partial(_of_layout, HeadLayout(8, 1, 256), torch.bfloat16, 16, None),
    "float32": partial(_of_layout, HeadLayout(4, 2, 64), torch.float32, 16, 48),
    "decodes alone": _of_decodes_alone,
    "decodes alone, float8": partial(_of_decodes_alone, torch.float8_e4m3fn),
    "tilings": _of_tilings,
    "fresh prompts": _of_fresh_prompts,
    "capped logits": _of_capped_logits,
    "shared prefixes": _of_shared_prefixes,
    "float8 cache": partial(_of_layout, LLAMA_8B, torch.bfloat16, 16, None, torch.float8_e4m3fn),
    "float8 cache 0.6B": partial(_of_layout, QWEN3_06B, torch.bfloat16, 64, 48, torch.float8_e4m3fn),
}
