"""Long fresh prompts in one dense call: which chunks are chosen, and that what is left over meets at the seam.

On a CPU torch answers instead of cuDNN, with the same alignment of the diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from shoal_engine.kernels import cudnn_prefill
from shoal_engine.kernels.cuda import CudaKernels
from shoal_engine.kernels.cudnn_prefill import DensePrefill, dense_prefills, rows_left
from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadInput, HeadLayout
from shoal_engine.kernels.reference import ReferenceKernels
from tests.engine.kernels.paged_batches import attention_batch, filled_cache, poison_outputs

HEADS = HeadLayout(2, 1, 64)
PLAIN = AttentionScale(0.125)


def told(queries: Sequence[int], contexts: Sequence[int]) -> AttentionBatch:
    """A batch whose host side is known."""
    batch, _ = attention_batch(queries, contexts, 16)
    return replace(batch, chunks=tuple(zip(queries, contexts, strict=True))[batch.num_decodes :])


@pytest.mark.parametrize(
    ("queries", "contexts", "want"),
    [
        ([4096], [4096], (DensePrefill(0, 1, 0, 4096),)),
        ([5000], [5000], (DensePrefill(0, 1, 0, 4096),)),
        ([1, 1, 2050], [900, 7, 2050], (DensePrefill(2, 1, 2, 2048),)),
        ([2048, 2048, 3000], [2048, 2048, 3000], (DensePrefill(0, 3, 0, 2048),)),
        ([2048, 3000, 2048], [2048, 3000, 2048], (DensePrefill(0, 2, 0, 2048), DensePrefill(2, 1, 5048, 2048))),
        ([2048, 50, 2048], [2048, 50, 2048], (DensePrefill(0, 1, 0, 2048), DensePrefill(2, 1, 2098, 2048))),
        ([1024, 1024], [1024, 1024], (DensePrefill(0, 2, 0, 1024),)),
        ([1030, 1030], [1030, 1030], ()),
        ([1024], [1024], ()),
        ([1023, 1023, 1023], [1023, 1023, 1023], ()),
        ([2048], [2049], ()),
        ([1, 1], [4096, 4096], ()),
    ],
    ids=str,
)  # fmt: skip
def test_long_chunks_with_nothing_before_them_are_chosen(
    queries: list[int], contexts: list[int], want: tuple[DensePrefill, ...]
) -> None:
    assert dense_prefills(told(queries, contexts), HEADS, PLAIN, torch.bfloat16) == want


def test_a_batch_that_does_not_say_its_chunks_is_left_alone() -> None:
    batch, _ = attention_batch([4096], [4096], 16)  # its maxima may be bounds, as in a recorded step
    assert dense_prefills(batch, HEADS, PLAIN, torch.bfloat16) == ()


@pytest.mark.parametrize(
    ("layout", "scale", "dtype"),
    [
        (HeadLayout(2, 1, 96), PLAIN, torch.bfloat16),
        (HEADS, AttentionScale(0.125, window=1000), torch.bfloat16),
        (HEADS, PLAIN, torch.float32),
    ],
)
def test_what_cudnn_does_not_compute_is_left_alone(
    layout: HeadLayout, scale: AttentionScale, dtype: torch.dtype
) -> None:
    assert dense_prefills(told([4096], [4096]), layout, scale, dtype) == ()


def test_a_window_that_hides_nothing_does_not_matter() -> None:
    assert dense_prefills(told([2048], [2048]), HEADS, AttentionScale(1.0, 2048), torch.bfloat16)


def test_no_length_makes_strides_of_its_own() -> None:
    """cuDNN builds a plan for each."""
    row = torch.zeros(5000, 4, 64)[:, 3:]
    views = [
        dense.cut(row)
        for lengths in ([2048], [2049], [2048, 300], [3000, 90])
        for dense in dense_prefills(told(lengths, lengths), HEADS, PLAIN, torch.bfloat16)
    ]
    assert len({(view.shape, view.stride()) for view in views}) == 1


def test_rows_left_begin_after_the_dense_ones() -> None:
    batch = told([1, 2050, 7], [30, 2050, 90])
    dense = dense_prefills(batch, HEADS, PLAIN, torch.bfloat16)
    assert rows_left(batch, dense).tolist() == [0, 2049, 2051]
    assert batch.query_start.tolist() == [0, 1, 2051, 2058], "the batch itself is as it was"


@pytest.mark.parametrize(
    ("queries", "contexts"),
    [([2048], [2048]), ([1024, 1024], [1024, 1024]), ([1, 2060, 3, 2048], [40, 2060, 50, 2048])],
    ids=str,
)
def test_outputs_equal_the_twins(
    queries: list[int], contexts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    poison_outputs(monkeypatch)
    batch = told(queries, contexts)
    cache = filled_cache(batch, int(batch.tables.max()) + 1, HEADS, torch.float16)
    q = torch.randn(sum(queries), 2, 64).to(torch.float16)
    want = ReferenceKernels().attend(q.float(), HEADS, batch, cache.nan_to_num(0.0).float(), PLAIN)
    got = CudaKernels().attend(q, HEADS, batch, cache, PLAIN)
    torch.testing.assert_close(got.float(), want, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("cache_dtype", [torch.float16, torch.float8_e4m3fn])
def test_keys_and_values_are_those_of_the_step_unless_the_cache_rounds_them(
    cache_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    poison_outputs(monkeypatch)
    for name in ("SHAPE_TOKENS", "LEAST_TOKENS"):
        monkeypatch.setattr(cudnn_prefill, name, 64)
    gathered, gathers = [], cudnn_prefill._gathered
    monkeypatch.setattr(cudnn_prefill, "_gathered", lambda *each: gathered.append(each) or gathers(*each))
    batch, twin = told([1, 69, 3], [40, 69, 50]), ReferenceKernels()
    cache = filled_cache(batch, int(batch.tables.max()) + 1, HEADS, cache_dtype)
    qkv = torch.randn(73, HEADS.qkv_size).to(torch.float16)
    heads = HeadInput(torch.cat((torch.ones(69, 32), torch.zeros(69, 32)), dim=-1))
    q = twin.rotate_and_store(qkv, HEADS, heads.rope_table, batch, cache.clone())
    got = CudaKernels().attend_new(qkv, HEADS, heads, batch, cache, PLAIN)
    want = twin.attend(q.float(), HEADS, batch, cache.float().nan_to_num(0.0), PLAIN)
    torch.testing.assert_close(got.float(), want, rtol=4e-3, atol=4e-3)
    assert bool(gathered) == (cache_dtype == torch.float8_e4m3fn)
