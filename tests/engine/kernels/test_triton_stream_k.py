"""Even cuts of a product's steps, and the kernel that runs them, in Triton's interpreter against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal_engine.kernels import gemm_table, triton_linear, triton_stream_k
from shoal_engine.kernels.gemm_table import GemmChoice, Method
from shoal_engine.kernels.stream_plan import plan_stream
from shoal_engine.kernels.triton_stream_k import stream
from tests.engine.kernels.paged_batches import poison_outputs

# The interpreter stands for a card of 4 processors. (M, N, K, split_k): whole tiles, two even parts, uneven runs.
CASES = [(33, 48, 96, 1), (20, 64, 128, 2), (40, 96, 200, 0), (70, 112, 320, 0), (20, 32, 512, 4)]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    poison_outputs(monkeypatch)


def choice_of(split_k: int, skew: int = 0) -> GemmChoice:
    return GemmChoice(Method.STREAM, 32, 32, split_k, 4, 3, 32, skew)


def operands(m: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    return (torch.randn(m, k) * k**-0.5).bfloat16(), torch.randn(n, k).bfloat16()


def assert_near(got: Tensor, want: Tensor) -> None:
    assert got.dtype == torch.bfloat16
    assert got.shape == want.shape
    error = (got.double() - want).norm() / want.norm()
    assert error <= 8e-3, f"relative error {error}"  # the interpreter truncates to bfloat16


@given(
    method=st.sampled_from([Method.STREAM, Method.WARPS]),
    rows=st.integers(1, 600),
    columns=st.integers(1, 3000),
    inner=st.integers(1, 3000),
    split=st.integers(0, 16),
    processors=st.integers(1, 132),
)
def test_a_plan_covers_all_steps_and_shared_tiles_run_at_once(
    method: Method, rows: int, columns: int, inner: int, split: int, processors: int
) -> None:
    plan = plan_stream(rows, columns, inner, GemmChoice(method, 64, 64, split, 4, 3, 128), processors)
    assert method is Method.STREAM or plan.programs <= processors
    assert (plan.programs - 1) * plan.budget < plan.total <= plan.programs * plan.budget
    assert plan.most_parts == 1 or plan.programs <= processors
    for tile in range(plan.tiles_m * plan.tiles_n):
        lead, tail = tile * plan.steps // plan.budget, ((tile + 1) * plan.steps - 1) // plan.budget
        assert tail - lead + 1 <= plan.most_parts


@pytest.mark.parametrize("skew", [0, 3])
@pytest.mark.parametrize(("m", "n", "k", "split"), CASES)
def test_a_product(m: int, n: int, k: int, split: int, skew: int) -> None:
    x, weight = operands(m, n, k)
    assert_near(stream(x, weight, choice_of(split, skew)), x.double() @ weight.double().T)


def test_a_shared_tile_repeats_bit_by_bit_and_leaves_no_arrivals() -> None:
    x, weight = operands(40, 96, 200)
    first = stream(x, weight, choice_of(0))
    assert torch.equal(stream(x, weight, choice_of(0)), first)
    assert not triton_stream_k._shared(x.device)[1].any()


def test_a_row_does_not_depend_on_the_others() -> None:
    x, weight = operands(40, 96, 200)
    first = stream(x, weight, choice_of(0))
    x[1:] = float("nan")
    assert torch.equal(stream(x, weight, choice_of(0))[0], first[0])


@pytest.mark.parametrize("method", [Method.STREAM, Method.CUBLAS])
def test_linear_goes_by_the_table(monkeypatch: pytest.MonkeyPatch, method: Method) -> None:
    x, weight = operands(20, 64, 128)
    row = ((method, 32, 32, 2, 4, 3, 32, 0),) * len(gemm_table.ROW_BUCKETS)
    monkeypatch.setattr(gemm_table, "_TABLE", {(64, 128): row})
    gemm_table.choose.cache_clear()
    try:
        assert_near(triton_linear.linear(x, weight), x.double() @ weight.double().T)
    finally:
        gemm_table.choose.cache_clear()


def test_what_the_copy_engine_cannot_fetch_is_left_to_the_library() -> None:
    x, weight = operands(20, 64, 128)
    assert triton_stream_k.serves(x, weight)
    assert not triton_stream_k.serves(x.float(), weight.float())
    assert not triton_stream_k.serves(x[:, :4], weight[:, :4].contiguous())
    assert not triton_stream_k.serves(x, weight.T)


def test_a_wrong_call_is_refused() -> None:
    x, weight = operands(20, 64, 128)
    with pytest.raises(ValueError, match="contiguous weight"):
        stream(x[:, :64], weight, choice_of(1))
    with pytest.raises(ValueError, match="bfloat16"):
        stream(x.float(), weight.float(), choice_of(1))
