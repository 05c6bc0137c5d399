"""Paged attention in Triton's interpreter against the torch twin: decodes, prefills and both in one batch.

float16 stands for the short types: the interpreter takes the bits of a bfloat16 for an integer in a product.
benchmarks/h200/kernels.py checks bfloat16 on the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from shoal_engine.kernels import triton_prefill
from shoal_engine.kernels.cuda import CudaKernels
from shoal_engine.kernels.interface import AttentionScale, HeadLayout
from shoal_engine.kernels.reference import ReferenceKernels
from shoal_engine.kernels.triton_decode import DecodeTiling
from shoal_engine.kernels.triton_decode_plan import plan_decodes
from shoal_engine.kernels.triton_prefill import PrefillTiling
from tests.engine.kernels.paged_batches import (
    attention_batch,
    filled_cache,
    poison_outputs,
    without_padding,
)

TWIN = ReferenceKernels()
SMALL = HeadLayout(4, 2, 16)
LAYOUTS = [SMALL, HeadLayout(3, 1, 24), HeadLayout(6, 2, 64), HeadLayout(2, 2, 32)]
TILES = PrefillTiling(block_m=16, block_n=16, warps=4, stages=1)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    poison_outputs(monkeypatch)


def check(
    queries: Sequence[int],
    contexts: Sequence[int],
    layout: HeadLayout = SMALL,
    dtype: torch.dtype = torch.float32,
    scale: AttentionScale | None = None,
    cache_dtype: torch.dtype | None = None,
    block_tokens: int = 16,
    workers: int = 3,
    prefill: PrefillTiling = TILES,
) -> None:
    """Two calls on one batch: the second finds the plan made and the counters of the pieces back at zero."""
    batch, num_blocks = attention_batch(queries, contexts, block_tokens)
    cache = filled_cache(batch, num_blocks, layout, cache_dtype or dtype)
    q = torch.randn(sum(queries), layout.num_heads, layout.head_dim).to(dtype)
    scale = scale or AttentionScale(layout.head_dim**-0.5)
    real = without_padding(batch)
    rows = int(real.query_start[-1])
    want = TWIN.attend(q[:rows].float(), layout, real, cache.float().nan_to_num(0.0), scale)
    decode = DecodeTiling(tile_tokens=16, programs=workers * layout.num_kv_heads)
    kernels = CudaKernels(decode, prefill)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    for _ in range(2):
        got = kernels.attend(q, layout, batch, cache, scale)
        assert got.dtype == dtype
        torch.testing.assert_close(got[:rows].float(), want, rtol=tolerance, atol=tolerance)
        assert torch.all(got[rows:] == 0), "a padding row must be written, with zeros"


EACH_LAYOUT = [*zip(LAYOUTS, [torch.float32] * 4, strict=True), (SMALL, torch.float16)]


@pytest.mark.parametrize(("layout", "dtype"), EACH_LAYOUT, ids=str)
def test_decodes_of_all_layouts(layout: HeadLayout, dtype: torch.dtype) -> None:
    check([1, 1, 1], [1, 70, 33], layout, dtype)


@pytest.mark.parametrize("workers", [1, 2, 17])
@pytest.mark.parametrize("contexts", [[16], [17, 15], [130, 1, 2, 3], [5, 5, 100], [16] * 9], ids=str)
def test_decodes_are_cut_into_equal_shares(contexts: list[int], workers: int) -> None:
    check([1] * len(contexts), contexts, workers=workers)


@pytest.mark.parametrize("workers", [1, 4])
def test_padding_rows_of_a_decode_graph_are_zero(workers: int) -> None:
    check([1] * 5, [40, 3, 0, 0, 0], workers=workers)


@pytest.mark.parametrize("block_tokens", [1, 8, 16, 32, 48])
def test_any_block_size(block_tokens: int) -> None:
    check([1, 1, 40], [50, 7, 61], block_tokens=block_tokens)


@pytest.mark.parametrize("window", [1, 7, 16, 30, 1000])
def test_a_sliding_window(window: int) -> None:
    check([1, 1, 20, 45], [50, 7, 61, 45], scale=AttentionScale(0.25, window))


@pytest.mark.parametrize(("window", "workers"), [(None, 5), (7, 1)])
def test_a_softcap(window: int | None, workers: int) -> None:
    check([1, 1, 20, 45], [50, 7, 61, 45], scale=AttentionScale(2.0, window, softcap=3.0), workers=workers)


@pytest.mark.parametrize(("window", "workers"), [(None, 5), (7, 1), (7, 5)])
def test_sinks_take_their_share_once(window: int | None, workers: int) -> None:
    sinks = torch.tensor([-2.0, 0.0, 1.5, 30.0])
    check(
        [1, 1, 1, 20, 45],
        [50, 7, 90, 61, 45],
        scale=AttentionScale(0.25, window, None, sinks),
        workers=workers,
    )
    check([1, 1], [90, 0], scale=AttentionScale(0.25, window, None, sinks.half()), workers=workers)


@pytest.mark.parametrize("layout", LAYOUTS[:2], ids=str)
def test_a_float8_cache(layout: HeadLayout) -> None:
    check([1, 1, 30], [70, 3, 45], layout, torch.float16, cache_dtype=torch.float8_e4m3fn)


@pytest.mark.parametrize(("layout", "dtype"), EACH_LAYOUT, ids=str)
def test_prefills_of_all_layouts(layout: HeadLayout, dtype: torch.dtype) -> None:
    check([33, 5, 16], [33, 40, 16], layout, dtype)


@pytest.mark.parametrize("tiling", [PrefillTiling(16, 32, 4, 1), PrefillTiling(64, 16, 4, 1)], ids=str)
def test_prefill_tilings(tiling: PrefillTiling) -> None:
    check([2, 1, 50, 7], [2, 90, 77, 7], HeadLayout(3, 1, 16), prefill=tiling)


def test_decodes_and_prefills_in_one_batch() -> None:
    check([1, 1, 18, 1, 3], [44, 9, 18, 30, 100], dtype=torch.float16)


def test_many_requests_are_found_in_more_than_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_prefill, "REQUESTS_PER_PASS", 8)
    check([2] * 19, [2] * 19, HeadLayout(1, 1, 16))


def test_chunks_give_the_same_rows_as_one_prefill() -> None:
    batch, num_blocks = attention_batch([60], [60], block_tokens=16)
    cache = filled_cache(batch, num_blocks, SMALL, torch.float32)
    q, scale = torch.randn(60, 4, 16), AttentionScale(0.25)
    whole = CudaKernels(prefill_tiling=TILES).attend(q, SMALL, batch, cache, scale)
    for start, end in [(0, 23), (23, 41), (41, 60)]:
        chunk, _ = attention_batch([end - start], [end], block_tokens=16)
        chunk.tables.copy_(batch.tables[:, : chunk.tables.shape[1]])
        rows = CudaKernels(prefill_tiling=TILES).attend(q[start:end], SMALL, chunk, cache, scale)
        torch.testing.assert_close(rows, whole[start:end])


def test_lengths_that_changed_in_place_need_a_new_step() -> None:
    batch, num_blocks = attention_batch([1, 1], [90, 60], block_tokens=16)
    cache = filled_cache(batch, num_blocks, SMALL, torch.float32)
    q, scale = torch.randn(2, 4, 16), AttentionScale(0.25)
    kernels = CudaKernels(DecodeTiling(tile_tokens=16, programs=6))
    kernels.attend(q, SMALL, batch, cache, scale)
    batch.context_lens.copy_(torch.tensor([20, 59]))
    kernels.begin_step(batch)
    want = TWIN.attend(q, SMALL, batch, cache.nan_to_num(0.0), scale)
    torch.testing.assert_close(kernels.attend(q, SMALL, batch, cache, scale), want)


def test_a_plan_deals_equal_shares_and_bounds_the_pieces() -> None:
    lengths = torch.tensor([160, 0, 17, 1600], dtype=torch.int32)
    plan = plan_decodes(lengths, 4, None, workers=8, tile_tokens=16, max_pieces=32)
    assert plan.line.tolist() == [15, 113, 0, 3, 3, 3, 3, 3, 3, 3, 0, 10, 11, 13, 113]
    plan = plan_decodes(lengths, 4, None, workers=64, tile_tokens=16, max_pieces=4)
    assert plan.line[0] == 34  # 100 tiles in at most 4 pieces, wherever the first one begins
    plan = plan_decodes(lengths, 3, 32, workers=2, tile_tokens=16, max_pieces=32)
    assert plan.line[4:].tolist() == [0, 2, 3, 5]  # only what the window shows
