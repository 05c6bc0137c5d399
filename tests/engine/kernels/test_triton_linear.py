"""Small-batch products in Triton's interpreter against float64. The kernels run as they are, without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal_engine.kernels import cublaslt, gemm_table, triton_linear
from shoal_engine.kernels.gemm_table import GemmChoice, Method, choose
from shoal_engine.kernels.triton_linear import launch, linear
from shoal_engine.quantization.fp8 import quantise_channels

GEMV = GemmChoice(Method.GEMV, 4, 64, 1, 4)
DOT = GemmChoice(Method.DOT, 16, 32, 1, 4, 2)
SPLIT = GemmChoice(Method.DOT, 16, 32, 4, 4, 2)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs start as NaN, so that an element nobody wrote is seen."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "empty", lambda *a, **k: torch.full(*a, float("nan"), **k))


def assert_near(got: Tensor, x: Tensor, weight: Tensor) -> None:
    want = x.double() @ weight.double().T
    assert got.dtype == x.dtype
    assert got.shape == want.shape
    worst = (got.double() - want).norm() / want.norm()
    assert worst <= 8e-3, f"relative error {worst}"  # the interpreter truncates to bfloat16


@pytest.mark.parametrize(("n", "k"), [(8, 64), (13, 96), (5, 33)])
def test_one_row(n: int, k: int) -> None:
    x, weight = torch.randn(1, k).bfloat16(), torch.randn(n, k).bfloat16()
    assert_near(launch(x, weight, None, GEMV), x, weight)


@pytest.mark.parametrize("choice", [DOT, SPLIT], ids=["whole", "split"])
@pytest.mark.parametrize(("m", "n", "k"), [(2, 32, 128), (7, 21, 70), (16, 48, 97), (1, 5, 20), (33, 17, 64)])
def test_few_rows(choice: GemmChoice, m: int, n: int, k: int) -> None:
    x, weight = torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16()
    assert_near(launch(x, weight, None, choice), x, weight)


def test_arrivals_are_zero_again_after_a_split_product() -> None:
    x, weight = torch.randn(3, 128).bfloat16(), torch.randn(32, 128).bfloat16()
    first = launch(x, weight, None, SPLIT)
    assert torch.equal(launch(x, weight, None, SPLIT), first)
    assert not triton_linear._shared(x.device)[1].any()


@pytest.mark.parametrize("choice", [DOT, SPLIT], ids=["whole", "split"])
def test_a_row_does_not_depend_on_the_others(choice: GemmChoice) -> None:
    x, weight = torch.randn(8, 96).bfloat16(), torch.randn(24, 96).bfloat16()
    both = launch(x, weight, None, choice)
    x[1:] = float("nan")
    assert torch.equal(launch(x, weight, None, choice)[0], both[0])


@pytest.mark.parametrize(("m", "choice"), [(1, GEMV), (5, DOT), (5, SPLIT)], ids=["gemv", "dot", "split"])
def test_float8_weights(m: int, choice: GemmChoice) -> None:
    x, full = torch.randn(m, 80).bfloat16(), torch.randn(19, 80) * torch.logspace(-3, 3, 19)[:, None]
    rounded = quantise_channels(full)
    weight, scale = rounded.values, rounded.scale
    assert_near(launch(x, weight, scale, choice), x, weight.double() * scale.double()[:, None])
    assert ((weight.float() * scale[:, None] - full).abs() <= full.abs().amax(1, keepdim=True) / 28).all()


@pytest.mark.parametrize("m", [1, 3, 40, 300])
def test_linear_takes_any_number_of_rows(m: int) -> None:
    x, weight = torch.randn(m, 64).bfloat16(), torch.randn(24, 64).bfloat16()
    assert_near(linear(x, weight), x, weight)


def test_a_wrong_call_is_refused() -> None:
    x, weight = torch.randn(2, 64).bfloat16(), torch.randn(24, 64).bfloat16()
    with pytest.raises(ValueError, match="1 to 1 rows"):
        launch(x, weight, None, GEMV)
    with pytest.raises(ValueError, match="contiguous"):
        launch(x, weight[:, :32], None, DOT)
    with pytest.raises(ValueError, match="scales"):
        launch(x, weight.to(torch.float8_e4m3fn), None, DOT)


def test_the_table_names_kernels_that_can_run() -> None:
    shapes = [*gemm_table._TABLE, (4096, 4096), (1024, 2048), (77, 40)]
    for n, k in shapes:
        for rows in (*gemm_table.ROW_BUCKETS, 3, 1000):
            choice = choose(rows, n, k)
            assert choice.method is not Method.GEMV or rows == 1
            assert choice.method is not Method.DOT or rows <= gemm_table.MAX_ROWS
            assert not choice.method.streams or choice.block_m > 0
            if choice.method is Method.PROPOSAL:
                assert 0 <= choice.split_k < cublaslt.MOST_PROPOSALS
                assert choice.block_m > 0
            elif choice.method not in (Method.CUBLAS, Method.CUBLASLT):
                assert choice.block_n * choice.block_k > 0
