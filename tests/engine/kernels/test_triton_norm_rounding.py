"""Norm and rounding in one pass, in Triton's interpreter, against the twins of both after one another.

In float32: the interpreter truncates to bfloat16 where torch and the GPU round.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from shoal_engine.kernels.reference import ReferenceKernels
from shoal_engine.kernels.triton_norm_rounding import norm_groups, norm_rows
from shoal_engine.kernels.triton_quantise import quantise_groups_reference, quantise_rows_reference
from tests.engine.kernels.paged_batches import poison_outputs

EPS = 1e-6
STEP = 1 / 16  # of a float8 number's leading bit: half of its last


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    poison_outputs(monkeypatch)


def operands(rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(rows, width) * torch.logspace(-3, 3, rows)[:, None]
    x[torch.arange(rows), torch.arange(rows) % width] *= 30  # an outlier each
    return x, torch.randn(rows, width), torch.rand(width).add(0.5)


@pytest.mark.parametrize(
    ("rounded", "twin", "width"),
    [(norm_rows, quantise_rows_reference, 200), (norm_rows, quantise_rows_reference, 64),
     (norm_groups, quantise_groups_reference, 384), (norm_groups, quantise_groups_reference, 128)],
)  # fmt: skip
@pytest.mark.parametrize("rows", [1, 7])
def test_as_a_norm_and_then_a_rounding(
    rounded: Callable[..., tuple[Tensor, Tensor]],
    twin: Callable[[Tensor], tuple[Tensor, Tensor]],
    width: int,
    rows: int,
) -> None:
    x, residual, weight = operands(rows, width)
    total = residual.clone()
    want_values, want_scales = twin(ReferenceKernels().add_rms_norm(x, total, weight, EPS))
    values, scales = rounded(x, residual, weight, EPS)
    assert torch.equal(residual, total)
    assert values.shape == want_values.shape
    assert scales.stride() == want_scales.stride()
    torch.testing.assert_close(scales[:rows], want_scales[:rows])
    got, want = values[:rows].float(), want_values[:rows].float()
    assert ((got - want).abs() <= 2 * STEP * want.abs()).all()
    assert (got != want).float().mean() <= 0.01


def test_a_broken_row_breaks_no_other() -> None:
    x, residual, weight = operands(3, 64)
    x[1, 5] = float("nan")
    _, scales = norm_rows(x, residual, weight, EPS)
    assert torch.isinf(scales[1]).all()
    assert torch.isfinite(scales[[0, 2]]).all()


def test_no_rows() -> None:
    empty = torch.empty(0, 128)
    assert norm_rows(empty, empty, torch.ones(128), EPS)[0].shape == (0, 128)


def test_operands_of_other_shapes_are_refused() -> None:
    x, residual, weight = operands(3, 64)
    with pytest.raises(ValueError, match="the residual must be contiguous"):
        norm_rows(x, residual[:2], weight, EPS)
    with pytest.raises(ValueError, match="a contiguous gain of 64"):
        norm_rows(x, residual, weight[:32], EPS)
