"""The row-wise Triton kernels in the interpreter, against the torch twins: odd widths, poisoned outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal_engine.kernels import triton_norm
from shoal_engine.kernels.reference import ReferenceKernels
from tests.engine.kernels.paged_batches import poison_outputs

TWIN = ReferenceKernels()
DTYPES = [torch.float32, torch.float16]
SHAPES = [(1, 1), (3, 7), (5, 576), (2, 1000), (17, 33)]
# float16: one rounding of the result, which may fall to the other side. bfloat16: the interpreter cuts bits off instead.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-6}


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    poison_outputs(monkeypatch)


def assert_close(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype
    torch.testing.assert_close(
        got.float(), want.float(), rtol=TOLERANCE[want.dtype], atol=TOLERANCE[want.dtype]
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_equals_its_twin(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype)
    assert_close(triton_norm.rms_norm(x, weight, 1e-5), TWIN.rms_norm(x, weight, 1e-5))


def test_rms_norm_takes_float32_weights_for_bfloat16_rows() -> None:
    x, weight = torch.randn(4, 100).bfloat16(), torch.randn(100)
    assert_close(triton_norm.rms_norm(x, weight, 1e-5), TWIN.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_residual_is_updated_in_place(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, residual, weight = (torch.randn(size).to(dtype) for size in (shape, shape, shape[1:]))
    twin_residual = residual.clone()
    want = TWIN.add_rms_norm(x, twin_residual, weight, 1e-6)
    assert_close(triton_norm.rms_norm(x, weight, 1e-6, residual), want)
    assert torch.equal(residual, twin_residual)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 14), (2, 2 * 1025), (5, 66)])
def test_silu_mul_equals_float32(shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate_up = torch.randn(shape).to(dtype)
    want = TWIN.silu_mul(gate_up.float()).to(dtype)
    assert_close(triton_norm.silu_mul(gate_up), want)


def test_no_rows_are_no_launch() -> None:
    assert triton_norm.rms_norm(torch.empty(0, 8), torch.ones(8), 1e-5).shape == (0, 8)
    assert triton_norm.silu_mul(torch.empty(0, 8)).shape == (0, 4)


def test_a_row_too_wide_and_a_foreign_residual_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        triton_norm.rms_norm(torch.ones(1, 40000), torch.ones(40000), 1e-5)
    with pytest.raises(ValueError, match="residual"):
        triton_norm.rms_norm(torch.ones(2, 8), torch.ones(8), 1e-5, torch.ones(3, 8))
