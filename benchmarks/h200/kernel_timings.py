"""What kernels.py times: one line of its table each, with its inputs, the time that the card would need, and its error.

Limits: attention of decodes reads the cache at 4.67 TB/s, row kernels move their bytes at 4.28 TB/s (read and copy rate
of an H200), prefills multiply the visible pairs at 789 TFLOP/s. A launch alone costs about 2 us, which no limit holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from kernel_cases import (
    DEVICE,
    LLAMA_8B,
    QWEN3_06B,
    Case,
    build,
    chunk,
    fresh,
    head_norms,
    random_caches,
    random_rows,
    relative_error,
    repeat,
    rope_table,
    uniform,
    widened,
)
from torch import Tensor

from shoal_engine.kernels.cuda import CudaKernels
from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadInput, HeadLayout, Kernels
from shoal_engine.kernels.reference import ReferenceKernels
from shoal_engine.kernels.triton_decode import DecodeTiling, plan_for
from shoal_engine.kernels.triton_norm_rounding import norm_rows
from shoal_engine.kernels.triton_prefill import PrefillTiling
from shoal_engine.kernels.triton_quantise import quantise_rows_reference, silu_mul_rows

TWIN = ReferenceKernels()
READ_RATE, COPY_RATE, FLOP_RATE = 4.67e12, 4.28e12, 789e12
ROTATED_BYTES = 300e6
FLOAT8 = torch.float8_e4m3fn
MODELS = {"8B": (LLAMA_8B, 4096, 14336), "0.6B": (QWEN3_06B, 1024, 3072)}
LONG_TAIL = Case("1x64k+31x4k", (1,) * 32, (65536, *repeat([4096], 31)))
DECODES = [uniform(b, c) for c in (577, 1024, 8192) for b in (1, 32, 128, 256)] + [LONG_TAIL]
SHARED = [Case(f"{b}x2240 2048 shared", (1,) * b, (2240,) * b, 2048) for b in (32, 256)]
QUICK_DECODES = [uniform(1, 577), uniform(32, 577), uniform(256, 577), LONG_TAIL]
PREFILLS = [fresh(16, 1024), fresh(8, 2048), fresh(2, 8192), chunk(1, 2048, 6144), chunk(16, 16, 1024)]
QUICK_PREFILLS = [fresh(16, 1024), fresh(1, 8192), chunk(1, 2048, 6144), chunk(16, 16, 1024)]
ROWS, QUICK_ROWS = (1, 32, 256, 8192), (256, 8192)
DECODE_TILINGS = [
    DecodeTiling(32, 1, 3, 1056),
    DecodeTiling(32, 1, 4, 1056),
    DecodeTiling(32, 1, 3, 1320),
    DecodeTiling(32, 1, 3, 792),
    DecodeTiling(32, 2, 3, 1056),
    DecodeTiling(64, 2, 3, 528),
    DecodeTiling(64, 2, 4, 528),
    DecodeTiling(64, 1, 3, 792),
    DecodeTiling(128, 4, 3, 528),
]
PREFILL_TILINGS = [
    PrefillTiling(128, 128, 8, 3),
    PrefillTiling(128, 128, 8, 2),
    PrefillTiling(128, 64, 8, 3),
    PrefillTiling(128, 64, 4, 3),
    PrefillTiling(64, 64, 4, 3),
    PrefillTiling(64, 128, 4, 2),
]


@dataclass(frozen=True, slots=True)
class Prepared:
    """calls: the same work on inputs that no cache holds together."""

    calls: Sequence[Callable[[], object]]
    limit_us: float
    error: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Timing:
    """group: lines of one group compile the same kernels, and another group's are others."""

    group: str
    case: str
    prepare: Callable[[], Prepared]


def timings(quick: bool, block_tokens: int) -> Iterator[Timing]:
    for name, (layout, hidden, intermediate) in MODELS.items():
        for case in QUICK_DECODES if quick else DECODES:
            yield _attention_timing(f"decode {name}", case, layout, block_tokens, CudaKernels())
        for case in QUICK_DECODES if quick else (*QUICK_DECODES, uniform(256, 8192)):
            kernels = CudaKernels()
            yield _attention_timing(f"decode-fp8 {name}", case, layout, block_tokens, kernels, FLOAT8)
        for dtype, label in ((torch.bfloat16, "rows"), (FLOAT8, "rows-fp8")):
            for case in QUICK_DECODES if quick else DECODES:
                prepare = partial(_rows, case, layout, block_tokens, name == "0.6B", dtype)
                yield Timing(f"{label} {name}", case.name, prepare)
        for case in SHARED:
            yield _attention_timing(f"decode-shared {name}", case, layout, block_tokens, CudaKernels())
        for case in QUICK_PREFILLS if quick else PREFILLS:
            yield _attention_timing(f"prefill {name}", case, layout, block_tokens, CudaKernels())
        for case in (fresh(1, 8192),) if quick else (fresh(16, 1024), fresh(8, 2048), fresh(2, 8192)):
            kernels = CudaKernels(prefill_tiling=PrefillTiling())
            yield _attention_timing(f"prefill-paged {name}", case, layout, block_tokens, kernels)
        for rows in QUICK_ROWS if quick else ROWS:
            has_norm = name == "0.6B"
            yield Timing(
                f"rotate {name}", f"{rows}", partial(_rotation, rows, layout, has_norm, block_tokens)
            )
            yield Timing(f"norms {name}", f"rms_norm {rows}", partial(_norm, rows, hidden, False))
            yield Timing(f"norms {name}", f"add_rms_norm {rows}", partial(_norm, rows, hidden, True))
            yield Timing(f"norms {name}", f"silu_mul {rows}", partial(_silu, rows, intermediate))
            yield Timing(f"rounding {name}", f"norm_rows {rows}", partial(_norm_rows, rows, hidden))
            yield Timing(f"rounding {name}", f"silu_mul_rows {rows}", partial(_silu_rows, rows, intermediate))
    yield Timing("plan", "256", partial(_plan, uniform(256, 1024), block_tokens))


def variants(block_tokens: int) -> Iterator[Timing]:
    """Every tiling, on the heads of the 8B."""
    for tiling in DECODE_TILINGS:
        label = f"decode {tiling.tile_tokens}/{tiling.warps}/{tiling.stages}/{tiling.programs}"
        for case in (uniform(1, 1024), uniform(32, 577), uniform(256, 577), LONG_TAIL, SHARED[1]):
            yield _attention_timing(label, case, LLAMA_8B, block_tokens, CudaKernels(tiling))
    for shape in PREFILL_TILINGS:
        label = f"prefill {shape.block_m}/{shape.block_n}/{shape.warps}/{shape.stages}"
        for case in PREFILLS:
            kernels = CudaKernels(prefill_tiling=shape)
            yield _attention_timing(label, case, LLAMA_8B, block_tokens, kernels)


def _attention_timing(
    group: str,
    case: Case,
    layout: HeadLayout,
    block_tokens: int,
    kernels: CudaKernels,
    dtype: torch.dtype = torch.bfloat16,
) -> Timing:
    return Timing(group, case.name, partial(_attention, case, layout, block_tokens, kernels, dtype))


def _attention(
    case: Case, layout: HeadLayout, block_tokens: int, kernels: CudaKernels, dtype: torch.dtype
) -> Prepared:
    batch, num_blocks = build(case, block_tokens)
    num_bytes = case.kv_bytes(layout, dtype.itemsize)
    caches = random_caches(_copies(num_bytes), num_blocks, layout, block_tokens, dtype)
    q = torch.randn(case.tokens, layout.num_heads, layout.head_dim, device=DEVICE, dtype=torch.bfloat16)
    scale = AttentionScale(layout.head_dim**-0.5)
    return Prepared(
        [partial(kernels.attend, q, layout, batch, cache, scale) for cache in caches],
        max(num_bytes / READ_RATE, case.flops(layout) / FLOP_RATE) * 1e6,
        partial(_attention_error, case, layout, batch, q, caches[0], scale, kernels),
    )


def _attention_error(
    case: Case,
    layout: HeadLayout,
    batch: AttentionBatch,
    q: Tensor,
    cache: Tensor,
    scale: AttentionScale,
    kernels: CudaKernels,
) -> float:
    """The worst of: the first and the last 64 rows of the first and of the last request."""
    got, worst = kernels.attend(q, layout, batch, cache, scale), 0.0
    for request in (0, len(case.queries) - 1):
        start, new, context = sum(case.queries[:request]), case.queries[request], case.contexts[request]
        rows = min(64, new)
        for begin in (0, new - rows):
            part = replace(
                batch,
                query_start=torch.tensor([0, rows]),
                context_lens=torch.tensor([context - new + begin + rows]),
                tables=batch.tables[request : request + 1],
                num_decodes=0,
            )
            at = slice(start + begin, start + begin + rows)
            want = TWIN.attend(q[at].float(), layout, part, cache, scale)
            worst = max(worst, relative_error(got[at], want))
    return worst


def _rows(case: Case, layout: HeadLayout, block_tokens: int, has_norm: bool, dtype: torch.dtype) -> Prepared:
    """Rotation, write and attention of decodes at once; beside the two kernels that do it one after the other."""
    batch, num_blocks = build(case, block_tokens)
    num_bytes = case.kv_bytes(layout, dtype.itemsize)
    caches = random_caches(_copies(num_bytes), num_blocks, layout, block_tokens, dtype)
    qkv, scale = random_rows(case.tokens, layout.qkv_size), AttentionScale(layout.head_dim**-0.5)
    q_norm, k_norm = head_norms(layout, has_norm)
    heads = HeadInput(rope_table(max(case.contexts), layout.head_dim), q_norm, k_norm)
    kernels = CudaKernels()

    def error() -> float:
        got = kernels.attend_new(qkv, layout, heads, batch, caches[0], scale)
        return relative_error(got, Kernels.attend_new(kernels, qkv, layout, heads, batch, caches[0], scale))

    calls = [partial(kernels.attend_new, qkv, layout, heads, batch, cache, scale) for cache in caches]
    return Prepared(calls, num_bytes / READ_RATE * 1e6, error)


def _rotation(rows: int, layout: HeadLayout, has_norm: bool, block_tokens: int) -> Prepared:
    kernels, num_bytes = CudaKernels(), rows * layout.qkv_size * 2 * 2
    batch, num_blocks = build(fresh(1, rows), block_tokens)
    cache, twin_cache = random_caches(2, num_blocks, layout, block_tokens)
    rope = rope_table(rows, layout.head_dim)
    q_norm, k_norm = head_norms(layout, has_norm)
    inputs = [random_rows(rows, layout.qkv_size) for _ in range(_copies(num_bytes))]

    def error() -> float:
        got = kernels.rotate_and_store(inputs[0], layout, rope, batch, cache, q_norm, k_norm)
        want = TWIN.rotate_and_store(inputs[0], layout, rope, batch, twin_cache, q_norm, k_norm)
        at = batch.tables[0, : rows // block_tokens].long()
        cached = relative_error(cache[at], twin_cache[at]) if len(at) else 0.0
        return max(relative_error(got, want), cached)

    calls = [partial(kernels.rotate_and_store, x, layout, rope, batch, cache, q_norm, k_norm) for x in inputs]
    return Prepared(calls, num_bytes / COPY_RATE * 1e6, error)


def _norm(rows: int, hidden: int, has_residual: bool) -> Prepared:
    kernels, num_bytes = CudaKernels(), rows * hidden * 2 * (4 if has_residual else 2)
    weight, residual = random_rows(1, hidden)[0], random_rows(rows, hidden)
    inputs = [random_rows(rows, hidden) for _ in range(_copies(num_bytes))]

    def call(x: Tensor) -> Tensor:
        if has_residual:
            return kernels.add_rms_norm(x, residual, weight, 1e-5)
        return kernels.rms_norm(x, weight, 1e-5)

    def error() -> float:
        before = residual.clone() if has_residual else torch.zeros_like(residual)
        return relative_error(call(inputs[0]), TWIN.add_rms_norm(inputs[0], before, weight, 1e-5))

    return Prepared([partial(call, x) for x in inputs], num_bytes / COPY_RATE * 1e6, error)


def _silu(rows: int, intermediate: int) -> Prepared:
    kernels, num_bytes = CudaKernels(), rows * intermediate * 2 * 3
    inputs = [random_rows(rows, 2 * intermediate) for _ in range(_copies(num_bytes))]
    return Prepared(
        [partial(kernels.silu_mul, x) for x in inputs],
        num_bytes / COPY_RATE * 1e6,
        lambda: relative_error(kernels.silu_mul(inputs[0]), TWIN.silu_mul(inputs[0].float())),
    )


def _norm_rows(rows: int, hidden: int) -> Prepared:
    num_bytes = rows * hidden * 7
    weight, residual = random_rows(1, hidden)[0], random_rows(rows, hidden)
    inputs = [random_rows(rows, hidden) for _ in range(_copies(num_bytes))]

    def error() -> float:
        values, scales = norm_rows(inputs[0], residual.clone(), weight, 1e-5)
        want = TWIN.add_rms_norm(inputs[0], residual.clone(), weight, 1e-5)
        return relative_error(widened(values, scales), widened(*quantise_rows_reference(want)))

    calls = [partial(norm_rows, x, residual, weight, 1e-5) for x in inputs]
    return Prepared(calls, num_bytes / COPY_RATE * 1e6, error)


def _silu_rows(rows: int, intermediate: int) -> Prepared:
    num_bytes = rows * intermediate * 5
    inputs = [random_rows(rows, 2 * intermediate) for _ in range(_copies(num_bytes))]

    def error() -> float:
        want = quantise_rows_reference(TWIN.silu_mul(inputs[0].float()).bfloat16())
        return relative_error(widened(*silu_mul_rows(inputs[0])), widened(*want))

    return Prepared([partial(silu_mul_rows, x) for x in inputs], num_bytes / COPY_RATE * 1e6, error)


def _plan(case: Case, block_tokens: int) -> Prepared:
    """Once a step, not a layer. Whether it is right shows in every decode."""
    batch, _ = build(case, block_tokens)

    def call() -> Tensor:
        return plan_for(batch, LLAMA_8B, AttentionScale(1.0), DecodeTiling()).line

    return Prepared([call] * 16, 2.0, lambda: 0.0)


def _copies(num_bytes: float) -> int:
    return max(1, min(80, round(ROTATED_BYTES / num_bytes + 0.5)))
