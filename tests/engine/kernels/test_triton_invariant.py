"""Batch-invariant products and attention in Triton's interpreter: right, and to the last bit the same in any company.

float16 stands for the short types in attention: the interpreter takes the bits of a bfloat16 for an integer in a product.
benchmarks/h200/deterministic.py proves the same of bfloat16 and of tensor cores on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadLayout
from shoal_engine.kernels.invariant import InvariantKernels, tiling_for
from shoal_engine.kernels.reference import ReferenceKernels
from shoal_engine.kernels.triton_invariant import (
    FLOAT32_TILE,
    InvariantTile,
    invariant_linear,
    tile_for,
)
from shoal_engine.kernels.triton_prefill import PrefillTiling
from tests.engine.kernels.paged_batches import attention_batch, filled_cache, poison_outputs

LAYOUT = HeadLayout(4, 2, 16)
SCALE = AttentionScale(0.25)
SMALL = InvariantTile(16, 32, 32, 4, 1)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    poison_outputs(monkeypatch)


def kernels() -> InvariantKernels:
    return InvariantKernels(PrefillTiling(16, 16, 4, 1))


@pytest.mark.parametrize("tile", [SMALL, InvariantTile(32, 64, 16, 4, 1)], ids=str)
@pytest.mark.parametrize("shape", [(1, 64, 32), (5, 70, 50), (40, 300, 33), (33, 32, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_right(tile: InvariantTile, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    m, n, k = shape
    x, weight, bias = (torch.randn(*size).to(dtype) for size in ((m, k), (n, k), (n,)))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for own in (None, bias):
        want = x.double() @ weight.double().T + (0 if own is None else own.double())
        got = invariant_linear(x, weight, own, tile)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


def test_rows_of_a_product_do_not_see_each_other() -> None:
    x, weight = torch.randn(37, 96), torch.randn(80, 96)
    whole = invariant_linear(x, weight, tile=SMALL)
    for row in (0, 15, 16, 36):
        assert torch.equal(invariant_linear(x[row : row + 1], weight, tile=SMALL)[0], whole[row])
    x[3] = float("nan")
    others = torch.arange(37) != 3
    assert torch.equal(invariant_linear(x, weight, tile=SMALL)[others], whole[others])


def test_no_rows_give_no_rows() -> None:
    assert invariant_linear(torch.zeros(0, 8), torch.zeros(4, 8)).shape == (0, 4)


def test_a_weight_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        invariant_linear(torch.zeros(1, 8), torch.zeros(4, 8, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("m", "n", "block_m", "block_n"),
    [
        (1, 4096, 16, 64),
        (32, 6144, 32, 64),
        (64, 1024, 16, 64),
        (256, 1024, 32, 64),
        (256, 4096, 128, 64),
        (256, 6144, 128, 128),
        (1024, 6144, 128, 128),
        (8192, 6144, 256, 128),
    ],
)
def test_the_tile_is_the_one_that_was_fastest_on_an_h200(m: int, n: int, block_m: int, block_n: int) -> None:
    tile = tile_for(m, n, torch.bfloat16)
    assert (tile.block_m, tile.block_n) == (block_m, block_n)
    assert tile_for(m, n, torch.float32) == FLOAT32_TILE


def attend(q: Tensor, batch: AttentionBatch, cache: Tensor, tables: Tensor) -> Tensor:
    batch.tables.copy_(tables[:, : batch.tables.shape[1]])
    return kernels().attend(q, LAYOUT, batch, cache, SCALE)


def chunks_of(length: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, length)) for start in range(0, length, size)]


@pytest.mark.parametrize("block_tokens", [8, 16])
@pytest.mark.parametrize("size", [1, 7, 16, 40])
def test_chunks_and_decodes_give_the_bits_of_one_prefill(size: int, block_tokens: int) -> None:
    length = 61
    batch, num_blocks = attention_batch([length], [length], block_tokens)
    cache = filled_cache(batch, num_blocks, LAYOUT, torch.float32)
    q = torch.randn(length, 4, 16)
    whole = attend(q, batch, cache, batch.tables.clone())
    want = ReferenceKernels().attend(q, LAYOUT, batch, cache.nan_to_num(0.0), SCALE)
    torch.testing.assert_close(whole, want, rtol=1e-5, atol=1e-5)
    for start, end in chunks_of(length, size) if size > 1 else [(0, 1), (15, 16), (16, 17), (60, 61)]:
        chunk, _ = attention_batch([end - start], [end], block_tokens)
        assert torch.equal(attend(q[start:end], chunk, cache, batch.tables), whole[start:end])


def company(queries: Sequence[int], contexts: Sequence[int], row: int) -> tuple[Tensor, Tensor]:
    """What request `row` gets in this batch, and what it gets alone."""
    batch, num_blocks = attention_batch(queries, contexts, 16)
    cache = filled_cache(batch, num_blocks, LAYOUT, torch.float16)
    cache[0] = 0.0  # which a padding row reads
    q = torch.randn(sum(queries), 4, 16).half()
    first, last = batch.query_start[row : row + 2].tolist()
    alone, _ = attention_batch([queries[row]], [contexts[row]], 16)
    together = kernels().attend(q, LAYOUT, batch, cache, SCALE)
    return together[first:last], attend(q[first:last], alone, cache, batch.tables[row : row + 1])


@pytest.mark.parametrize("row", [0, 2, 3, 5])
def test_other_requests_do_not_change_a_bit(row: int) -> None:
    together, alone = company([1, 1, 1, 20, 3, 1], [50, 3, 16, 20, 90, 70], row)
    assert torch.equal(together, alone)
    assert together.isfinite().all()


def test_padding_rows_do_not_change_a_bit_and_are_finite() -> None:
    together, alone = company([1, 1, 1, 1], [33, 7, 0, 0], 1)
    assert torch.equal(together, alone)
    padding, _ = company([1, 1, 1], [33, 0, 0], 2)
    assert padding.isfinite().all()


def test_lengths_that_changed_in_place_are_seen_by_the_next_step() -> None:
    batch, num_blocks = attention_batch([1, 1], [90, 60], 16)
    cache = filled_cache(batch, num_blocks, LAYOUT, torch.float32)
    q, ours = torch.randn(2, 4, 16), kernels()
    ours.attend(q, LAYOUT, batch, cache, SCALE)
    batch.context_lens.copy_(torch.tensor([20, 59]))
    ours.begin_step(batch)
    want = ReferenceKernels().attend(q, LAYOUT, batch, cache.nan_to_num(0.0), SCALE)
    torch.testing.assert_close(ours.attend(q, LAYOUT, batch, cache, SCALE), want, rtol=1e-5, atol=1e-5)


def test_a_model_has_one_tiling() -> None:
    assert tiling_for(LAYOUT, torch.bfloat16) != tiling_for(HeadLayout(4, 2, 256), torch.bfloat16)
    assert tiling_for(LAYOUT, torch.float32).block_n < tiling_for(LAYOUT, torch.bfloat16).block_n
