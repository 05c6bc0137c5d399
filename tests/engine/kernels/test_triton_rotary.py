"""Head norm, rotation and the write to the cache, in Triton's interpreter, against the torch twin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal_engine.kernels import triton_rotary
from shoal_engine.kernels.cuda import CudaKernels
from shoal_engine.kernels.interface import HeadLayout
from shoal_engine.kernels.reference import ReferenceKernels
from shoal_engine.kernels.triton_rotary import WHOLE, RotaryTiling
from tests.engine.kernels.paged_batches import attention_batch, poison_outputs

TWIN = ReferenceKernels()
LAYOUTS = [HeadLayout(4, 2, 16), HeadLayout(9, 3, 24), HeadLayout(2, 1, 128), HeadLayout(14, 2, 64)]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    poison_outputs(monkeypatch)


def rope_table(max_positions: int, head_dim: int) -> Tensor:
    angles = torch.rand(max_positions, head_dim // 2) * 6.28
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def assert_near(got: Tensor, want: Tensor) -> None:
    """NaN where the twin has NaN. The interpreter cuts bits off where a GPU rounds to bfloat16, here up to twice."""
    tolerance = 1e-5 if want.dtype == torch.float32 else 2**-6
    torch.testing.assert_close(got.float(), want.float(), rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("query_heads", [2, 8, 32], ids="{} of a program".format)
def test_queries_and_cache_equal_the_twins(
    layout: HeadLayout, dtype: torch.dtype, has_norm: bool, query_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_rotary, "SPREAD", RotaryTiling(query_heads, 256))
    batch, num_blocks = attention_batch([1, 1, 1, 5], [3, 17, 0, 20], block_tokens=8)
    qkv = torch.randn(8, layout.qkv_size).to(dtype)
    rope = rope_table(20, layout.head_dim)
    norms = (
        [torch.randn(layout.head_dim).to(dtype), torch.randn(layout.head_dim).to(dtype)] if has_norm else []
    )
    shape = (num_blocks, 2, layout.num_kv_heads, 8, layout.head_dim)
    cache, twin_cache = (torch.full(shape, float("nan"), dtype=dtype) for _ in range(2))
    q = CudaKernels().rotate_and_store(qkv, layout, rope, batch, cache, *norms)
    assert_near(q, TWIN.rotate_and_store(qkv, layout, rope, batch, twin_cache, *norms))
    assert_near(cache, twin_cache)
    # Values are copied, not computed.
    assert torch.equal(cache[:, 1].nan_to_num(9.0), twin_cache[:, 1].nan_to_num(9.0))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_keys_go_to_rows_as_to_their_pages(layout: HeadLayout) -> None:
    batch, num_blocks = attention_batch([1, 1, 5], [3, 0, 20], block_tokens=8)
    qkv, norm = torch.randn(7, layout.qkv_size), torch.randn(layout.head_dim)
    cache = torch.zeros(num_blocks, 2, layout.num_kv_heads, 8, layout.head_dim)
    keys = torch.full((7, layout.num_kv_heads, layout.head_dim), float("nan"))
    rope = rope_table(20, layout.head_dim)
    triton_rotary.rotate_and_store(qkv, layout, rope, batch, cache, norm, norm, 1e-6, keys, WHOLE)
    real = batch.slots >= 0
    slots = batch.slots[real]
    assert torch.equal(keys[real], cache[slots // 8, 0, :, slots % 8])
    assert not keys.isnan().any()


def test_blocks_may_stand_apart_and_neighbours_stay_untouched() -> None:
    layout = HeadLayout(4, 2, 16)
    batch, num_blocks = attention_batch([3], [9], block_tokens=4)
    pool = torch.full((num_blocks, 3, 2, 2, 4, 16), 7.0)  # all layers of a block together
    twin_cache = torch.full((num_blocks, 2, 2, 4, 16), 7.0)
    qkv, rope = torch.randn(3, layout.qkv_size), rope_table(9, 16)
    CudaKernels().rotate_and_store(qkv, layout, rope, batch, pool[:, 1])
    TWIN.rotate_and_store(qkv, layout, rope, batch, twin_cache)
    assert_near(pool[:, 1], twin_cache)
    assert torch.all(pool[:, 0] == 7.0)
    assert torch.all(pool[:, 2] == 7.0)


def test_a_float8_cache_holds_what_the_twins_holds() -> None:
    """Numbers that float8 has stay as they are, and none is larger than 448. The interpreter rounds wrongly."""
    layout = HeadLayout(4, 2, 16)
    batch, num_blocks = attention_batch([1, 1, 1, 5], [3, 17, 0, 20], block_tokens=8)
    qkv = (torch.randn(8, layout.qkv_size) * 200).clamp(-448, 448).to(torch.float8_e4m3fn).to(torch.float16)
    qkv[:, ::7] *= 128
    shape = (num_blocks, 2, 2, 8, 16)
    cache, twin_cache = (torch.zeros(shape).to(torch.float8_e4m3fn) for _ in range(2))
    no_turn = torch.cat((torch.ones(20, 8), torch.zeros(20, 8)), dim=-1)
    CudaKernels().rotate_and_store(qkv, layout, no_turn, batch, cache)
    TWIN.rotate_and_store(qkv, layout, no_turn, batch, twin_cache)
    assert float(twin_cache.float().abs().max()) == 448.0
    assert torch.equal(cache.float(), twin_cache.float())


def test_a_cache_of_another_dtype_is_refused() -> None:
    layout = HeadLayout(4, 2, 16)
    batch, num_blocks = attention_batch([1], [1], block_tokens=4)
    cache = torch.zeros(num_blocks, 2, 2, 4, 16, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="dtype"):
        CudaKernels().rotate_and_store(torch.ones(1, 128), layout, torch.ones(1, 16), batch, cache)
