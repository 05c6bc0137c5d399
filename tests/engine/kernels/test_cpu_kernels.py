"""Every CPU kernel against its torch twin: odd shapes, both dtypes, and caches whose unowned slots are poisoned."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shoal_engine.kernels import cpu_build
from shoal_engine.kernels.cpu import CpuKernels
from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadLayout
from shoal_engine.kernels.reference import ReferenceKernels

DTYPES = [torch.float32, torch.bfloat16]
TWIN = ReferenceKernels()
# Relative to the largest value: float32 differs by the order of sums, bfloat16 by one rounding of the result, and the
# attention weights are rounded to bfloat16 as well.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(scope="module")
def kernels() -> CpuKernels:
    return CpuKernels(cpu_build.load_library())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assert_close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    assert got.shape == want.shape
    assert got.dtype == want.dtype == dtype
    largest = want.float().abs().max().clamp(min=1e-3)
    worst = (got.float() - want.float()).abs().max()
    assert worst <= TOLERANCE[dtype] * largest, f"off by {worst} where values reach {largest}"


def attention_batch(
    queries: Sequence[int], contexts: Sequence[int], block_tokens: int = 16
) -> tuple[AttentionBatch, int]:
    """Requests with `queries` new tokens of `contexts`, on shuffled blocks; also the number of blocks, block 0 unowned."""
    blocks = [-(-context // block_tokens) for context in contexts]
    order = torch.randperm(sum(blocks)) + 1
    tables = torch.zeros(len(contexts), max(blocks), dtype=torch.int32)
    slots, positions, used = [], [], 0
    for row, (new, context, count) in enumerate(zip(queries, contexts, blocks, strict=True)):
        tables[row, :count] = order[used : used + count].int()
        used += count
        position = torch.arange(context - new, context)
        positions.append(position)
        slots.append(tables[row, position // block_tokens].long() * block_tokens + position % block_tokens)
    batch = AttentionBatch(
        query_start=torch.tensor([0, *queries]).cumsum(0).int(),
        context_lens=torch.tensor(contexts, dtype=torch.int32),
        tables=tables,
        slots=torch.cat(slots),
        positions=torch.cat(positions),
        num_decodes=sum(new == 1 for new in queries),
        max_query_len=max(queries),
        max_context_len=max(contexts),
        block_tokens=block_tokens,
    )
    return batch, sum(blocks) + 1


def filled_caches(
    kernels: CpuKernels, batch: AttentionBatch, num_blocks: int, layout: HeadLayout, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The kernels' cache and the twin's, with the same random keys and values of all visible tokens.

    Everything else is NaN in the kernels' cache, and 0 in the twin's, which multiplies hidden values by zero.
    """
    lengths = batch.context_lens.tolist()
    block_tokens = batch.block_tokens
    positions = [torch.arange(length) for length in lengths]
    slots = [
        table[position // block_tokens].long() * block_tokens + position % block_tokens
        for table, position in zip(batch.tables, positions, strict=True)
    ]
    everything = replace(batch, slots=torch.cat(slots), positions=torch.cat(positions))
    qkv = torch.randn(sum(lengths), layout.qkv_size).to(dtype)
    rope = rope_table(max(lengths), layout.head_dim)
    shape = (num_blocks, 2, layout.num_kv_heads, block_tokens, layout.head_dim)
    cache, twin_cache = torch.full(shape, float("nan"), dtype=dtype), torch.zeros(shape, dtype=dtype)
    kernels.rotate_and_store(qkv, layout, rope, everything, cache)
    TWIN.rotate_and_store(qkv, layout, rope, everything, twin_cache)
    return cache, twin_cache


def rope_table(max_positions: int, head_dim: int) -> Tensor:
    angles = torch.rand(max_positions, head_dim // 2) * 6.28
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def check_attend(
    kernels: CpuKernels,
    queries: Sequence[int],
    contexts: Sequence[int],
    layout: HeadLayout,
    dtype: torch.dtype,
    window: int | None = None,
    block_tokens: int = 16,
) -> None:
    batch, num_blocks = attention_batch(queries, contexts, block_tokens)
    cache, twin_cache = filled_caches(kernels, batch, num_blocks, layout, dtype)
    q = torch.randn(sum(queries), layout.num_heads, layout.head_dim).to(dtype)
    scale = AttentionScale(layout.head_dim**-0.5, window)
    want = TWIN.attend(q, layout, batch, twin_cache, scale)
    assert_close(kernels.attend(q, layout, batch, cache, scale), want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 576), (3, 7), (16, 576), (5, 1000), (200, 129)])
def test_rms_norm_equals_its_twin(kernels: CpuKernels, shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype)
    assert_close(kernels.rms_norm(x, weight, 1e-5), TWIN.rms_norm(x, weight, 1e-5), dtype)


def test_rms_norm_takes_float32_weights_for_bfloat16_rows(kernels: CpuKernels) -> None:
    x, weight = torch.randn(4, 100).bfloat16(), torch.randn(100)
    assert_close(kernels.rms_norm(x, weight, 1e-5), TWIN.rms_norm(x, weight, 1e-5), torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8), (16, 576), (7, 33), (100, 640)])
def test_add_rms_norm_updates_the_residual_in_place(
    kernels: CpuKernels, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x, residual, weight = (torch.randn(size).to(dtype) for size in (shape, shape, shape[1:]))
    twin_residual = residual.clone()
    want = TWIN.add_rms_norm(x, twin_residual, weight, 1e-6)
    assert_close(kernels.add_rms_norm(x, residual, weight, 1e-6), want, dtype)
    assert torch.equal(residual, twin_residual)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 1536), (16, 1536), (3, 37), (64, 999)])
def test_silu_mul_equals_its_twin(kernels: CpuKernels, rows: int, width: int, dtype: torch.dtype) -> None:
    gate_up = (torch.randn(rows, 2 * width) * 4).to(dtype)
    assert_close(kernels.silu_mul(gate_up), TWIN.silu_mul(gate_up), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_of_extreme_values_neither_overflows_nor_hides_nan(
    kernels: CpuKernels, dtype: torch.dtype
) -> None:
    gate = torch.tensor(
        [[-1e30, -200.0, -90.0, 0.0, 90.0, 1e30, float("nan"), float("inf")] * 3], dtype=dtype
    )
    got = kernels.silu_mul(torch.cat((gate, torch.ones_like(gate)), dim=-1))
    want = TWIN.silu_mul(torch.cat((gate, torch.ones_like(gate)), dim=-1))
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize(
    "layout",
    [
        HeadLayout(9, 3, 64),
        HeadLayout(4, 4, 80),
        HeadLayout(8, 1, 96),
        HeadLayout(6, 2, 128),
        HeadLayout(2, 1, 10),
    ],
)
def test_rotate_and_store_returns_the_queries_of_its_twin(
    kernels: CpuKernels, layout: HeadLayout, with_norm: bool, dtype: torch.dtype
) -> None:
    batch, num_blocks = attention_batch([1, 1, 20], [5, 33, 40])
    qkv = torch.randn(22, layout.qkv_size).to(dtype)
    norms = [torch.randn(layout.head_dim).to(dtype) for _ in range(2)] if with_norm else [None, None]
    cache = torch.zeros(num_blocks, 2, layout.num_kv_heads, 16, layout.head_dim, dtype=dtype)
    rope = rope_table(64, layout.head_dim)
    want = TWIN.rotate_and_store(qkv, layout, rope, batch, cache.clone(), *norms)
    assert_close(kernels.rotate_and_store(qkv, layout, rope, batch, cache, *norms), want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_stored_keys_are_normalised_as_queries_are(kernels: CpuKernels, dtype: torch.dtype) -> None:
    layout = HeadLayout(4, 2, 64)
    batch, num_blocks = attention_batch([30], [30])
    qkv, norms = torch.randn(30, layout.qkv_size).to(dtype), [torch.randn(64).to(dtype) for _ in range(2)]
    cache = torch.full((num_blocks, 2, 2, 16, 64), float("nan"), dtype=dtype)
    twin_cache, rope, scale = torch.zeros_like(cache), rope_table(30, 64), AttentionScale(0.125)
    q = kernels.rotate_and_store(qkv, layout, rope, batch, cache, *norms)
    twin_q = TWIN.rotate_and_store(qkv, layout, rope, batch, twin_cache, *norms)
    want = TWIN.attend(twin_q, layout, batch, twin_cache, scale)
    assert_close(kernels.attend(q, layout, batch, cache, scale), want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_is_stored_in_its_own_block_and_padding_nowhere(
    kernels: CpuKernels, dtype: torch.dtype
) -> None:
    layout = HeadLayout(4, 2, 64)
    batch, num_blocks = attention_batch([1, 3], [7, 20])
    padded = replace(batch, slots=torch.tensor([-1, *batch.slots[1:3].tolist(), -1]))
    cache = torch.full((num_blocks, 2, 2, 16, 64), 7.0, dtype=dtype)
    kernels.rotate_and_store(
        torch.randn(4, layout.qkv_size).to(dtype), layout, rope_table(32, 64), padded, cache
    )
    numbers_per_block = (cache != 7.0).flatten(1).sum(1)
    want = torch.zeros(num_blocks, dtype=torch.int64)
    want.index_add_(0, batch.slots[1:3] // 16, torch.full((2,), 2 * 2 * 64))
    assert torch.equal(numbers_per_block, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("group", range(1, 9))
def test_attend_equals_its_twin_for_any_head_layout(
    kernels: CpuKernels, group: int, head_dim: int, dtype: torch.dtype
) -> None:
    check_attend(kernels, [1, 1, 7, 30], [1, 50, 7, 300], HeadLayout(2 * group, 2, head_dim), dtype)


MIXES = {
    "one decode": ([1], [200]),
    "decodes": ([1] * 6, [1, 15, 16, 17, 255, 513]),
    "decodes and prompts": ([1, 1, 40, 100], [30, 300, 40, 100]),
    "prompts": ([1, 33, 300], [1, 33, 300]),
    "chunks behind prefixes": ([5, 64, 100], [261, 520, 1100]),
    "long contexts": ([1, 20], [4096, 4000]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 20, 300])
@pytest.mark.parametrize("mix", MIXES)
def test_attend_equals_its_twin_for_any_mix_of_requests(
    kernels: CpuKernels, mix: str, window: int | None, dtype: torch.dtype
) -> None:
    check_attend(kernels, *MIXES[mix], HeadLayout(6, 2, 64), dtype, window)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_tokens", [1, 2, 8, 32, 48])
def test_attend_equals_its_twin_for_any_block_size(
    kernels: CpuKernels, block_tokens: int, dtype: torch.dtype
) -> None:
    check_attend(kernels, [1, 19], [77, 100], HeadLayout(3, 1, 32), dtype, block_tokens=block_tokens)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("threads", "window"), [(1, None), (2, None), (5, None), (2, 75)])
def test_a_token_has_the_same_bits_alone_in_a_batch_in_a_chunk_and_on_any_number_of_threads(
    kernels: CpuKernels, threads: int, window: int | None, dtype: torch.dtype
) -> None:
    layout, scale, context = HeadLayout(6, 2, 64), AttentionScale(0.125, window), 700
    batch, num_blocks = attention_batch([context, 1], [context, 90])
    cache, _ = filled_caches(kernels, batch, num_blocks, layout, dtype)
    q = torch.randn(context + 1, 6, 64).to(dtype)

    def attend(first: int, last: int) -> Tensor:
        """Tokens first:last of the long request, alone."""
        queries = last - first
        chunk = replace(
            batch,
            query_start=torch.tensor([0, queries], dtype=torch.int32),
            context_lens=torch.tensor([last], dtype=torch.int32),
            tables=batch.tables[:1],
            slots=batch.slots[first:last],
            positions=batch.positions[first:last],
            max_query_len=queries,
            max_context_len=last,
        )
        return kernels.attend(q[first:last], layout, chunk, cache, scale)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = kernels.attend(q, layout, batch, cache, scale)
        for first, last in [(0, 700), (0, 300), (300, 700), (511, 530), (256, 257), (699, 700)]:
            assert torch.equal(attend(first, last), whole[first:last]), f"tokens {first}:{last}"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_in_a_query_stays_with_its_token(kernels: CpuKernels, dtype: torch.dtype) -> None:
    layout = HeadLayout(2, 1, 64)
    batch, num_blocks = attention_batch([1, 8], [30, 8])
    cache, _ = filled_caches(kernels, batch, num_blocks, layout, dtype)
    q = torch.randn(9, 2, 64).to(dtype)
    q[4] = float("nan")
    got = kernels.attend(q, layout, batch, cache, AttentionScale(0.125))
    assert got[4].isnan().all()
    assert not got[[0, 1, 2, 3, 5, 6, 7, 8]].isnan().any()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the levels are those of x86-64")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3", "x86-64-v4"])
def test_every_instruction_set_computes_the_same(level: str, dtype: torch.dtype) -> None:
    if level == "x86-64-v4" and not torch.cpu._is_avx512_supported():
        pytest.skip("this processor cannot run it")
    kernels = CpuKernels(cpu_build.load_library(level))
    for block_tokens in (8, 16):
        check_attend(
            kernels, [1, 1, 90], [20, 300, 400], HeadLayout(8, 2, 80), dtype, block_tokens=block_tokens
        )
        check_attend(
            kernels, [1, 30], [1000, 30], HeadLayout(3, 1, 64), dtype, window=100, block_tokens=block_tokens
        )
    x, weight = torch.randn(5, 77).to(dtype), torch.randn(77).to(dtype)
    assert_close(kernels.rms_norm(x, weight, 1e-5), TWIN.rms_norm(x, weight, 1e-5), dtype)
    gate_up = (torch.randn(5, 154) * 30).to(dtype)
    assert_close(kernels.silu_mul(gate_up), TWIN.silu_mul(gate_up), dtype)


def test_only_one_pool_of_threads_exists(kernels: CpuKernels) -> None:
    check_attend(kernels, [1] * 8, [300] * 8, HeadLayout(6, 2, 64), torch.bfloat16)
    maps = Path("/proc/self/maps").read_text().splitlines()
    openmp = {line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line or "libiomp" in line}
    assert openmp == {str(cpu_build.loaded_openmp())}


@pytest.mark.parametrize(
    ("cache", "block_tokens", "message"),
    [
        (torch.zeros(3, 2, 1, 16, 64), 16, "dtype of its keys"),
        (torch.zeros(3, 2, 1, 64, 16, dtype=torch.bfloat16).transpose(3, 4), 16, "contiguous"),
        (torch.zeros(3, 2, 1, 16, 63, dtype=torch.bfloat16), 16, "even"),
        (torch.zeros(3, 2, 1, 24, 64, dtype=torch.bfloat16), 24, "multiple of 16 tokens, not 24"),
    ],
)
def test_a_cache_it_cannot_address_is_refused(
    kernels: CpuKernels, cache: Tensor, block_tokens: int, message: str
) -> None:
    batch, _ = attention_batch([1], [30], block_tokens)
    with pytest.raises(ValueError, match=message):
        kernels.attend(
            torch.randn(1, 2, 64).bfloat16(), HeadLayout(2, 1, 64), batch, cache, AttentionScale(0.125)
        )
