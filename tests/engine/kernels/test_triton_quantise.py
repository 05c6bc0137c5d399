"""Rounding of activations in Triton's interpreter against its torch twin, and the twin against what float8 can hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal_engine.kernels.triton_quantise import (
    quantise_groups,
    quantise_groups_reference,
    quantise_rows,
    quantise_rows_reference,
    rescale,
    silu_mul_rows,
)
from tests.engine.kernels.compiled_elsewhere import compiled

STEP = 1 / 16  # e4m3 keeps three bits behind the leading one: half of the last is 1/16 of the number


def activations(m: int, k: int, seed: int = 0) -> Tensor:
    """Rows of very different sizes, with an outlier each."""
    torch.manual_seed(seed)
    x = torch.randn(m, k) * torch.logspace(-3, 2, m)[:, None]
    x[torch.arange(m), torch.arange(m) % k] *= 30
    return x.bfloat16()


def same_float8(got: Tensor, want: Tensor) -> None:
    """Equal, but for numbers halfway between two, which a division in other steps may move to the other side."""
    got, want = got.float(), want.float()
    unequal = got != want
    assert unequal.float().mean() <= 0.01
    assert ((got - want).abs() <= 2 * STEP * want.abs()).all()


@pytest.mark.parametrize(("m", "k"), [(1, 64), (5, 200), (17, 1000)])
def test_rows(m: int, k: int) -> None:
    x = activations(m, k)
    values, scales = quantise_rows(x)
    want_values, want_scales = quantise_rows_reference(x)
    assert scales.shape == (m, 1)
    torch.testing.assert_close(scales, want_scales)
    same_float8(values, want_values)


@pytest.mark.parametrize(("m", "k"), [(1, 64), (5, 200)])
def test_rows_of_a_gated_product(m: int, k: int) -> None:
    gate_up = torch.cat([torch.randn(m, k), activations(m, k).float()], 1).bfloat16()
    gate, up = gate_up.double().chunk(2, 1)
    want = torch.nn.functional.silu(gate) * up
    values, scales = silu_mul_rows(gate_up)
    error = (values.double() * scales.double() - want).norm(dim=1) / want.norm(dim=1)
    assert (values.float().abs().amax(1) == 448).all()
    assert error.max() <= 0.04
    torch.testing.assert_close(scales[:, 0].double(), want.abs().amax(1) / 448, rtol=2**-7, atol=0)


@pytest.mark.parametrize(("m", "k"), [(1, 128), (5, 384), (8, 256)])
def test_groups(m: int, k: int) -> None:
    x = activations(m, k)
    values, scales = quantise_groups(x)
    want_values, want_scales = quantise_groups_reference(x)
    assert values.shape == want_values.shape == (-(-m // 4) * 4, k)
    assert scales.shape == want_scales.shape == (values.shape[0], k // 128)
    assert scales.stride() == want_scales.stride() == (1, values.shape[0])
    torch.testing.assert_close(scales[:m], want_scales[:m])
    same_float8(values[:m], want_values[:m])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.sampled_from([16, 130, 256]), st.integers(0, 2**16))
def test_what_is_rounded_is_near_what_was_given(m: int, k: int, seed: int) -> None:
    x = activations(m, k, seed)
    values, scales = quantise_rows_reference(x)
    assert (values.float().abs().amax(1) == 448).all()
    error = (values.float() * scales - x.float()).abs()
    # Below 2^-6 of e4m3 the distance of its numbers no longer shrinks: 2^-9.
    assert (error <= torch.maximum(x.float().abs() * STEP, scales * 2**-10) * 1.0001).all()


def test_rows_of_zeros_stay_zero() -> None:
    x = torch.zeros(3, 128, dtype=torch.bfloat16)
    for values, scales in (quantise_rows(x), quantise_groups(x)):
        assert not values[:3].float().any()
        assert torch.isfinite(scales[:3]).all()


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_token_stays_broken_and_alone(broken: float) -> None:
    x = activations(3, 128)
    x[1, 5] = broken
    for values, scales in (quantise_rows(x), quantise_groups(x), quantise_rows_reference(x)):
        product = (values[:3].float().sum(1) * scales[:3, 0]).isfinite()
        assert product.tolist() == [True, False, True]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("m", "n"), [(1, 16), (7, 2100)])
def test_scales_applied_to_a_product(m: int, n: int, biased: bool) -> None:
    torch.manual_seed(0)
    y = (torch.randn(m, n) * 1e6).bfloat16()
    rows, columns = torch.rand(m, 1) * 1e-3, torch.rand(n) * 1e-3
    bias = torch.randn(n).bfloat16() if biased else None
    want = y.double() * rows.double() * columns.double() + (0 if bias is None else bias.double())
    got = rescale(y, rows, columns, bias)
    assert got is y
    assert ((got.double() - want).abs() <= want.abs() * 2**-7 + 1e-6).all()  # the interpreter truncates


# What the interpreter cannot run: two gates at a time, each with an exponential and a reciprocal of the card's own.
COMPILE = """
import json
import torch
import triton
from shoal_engine.kernels.gpu import H200
from shoal_engine.kernels.triton_builds import foreseen, target_of
from shoal_engine.kernels.triton_quantise import silu_mul_rows

gate_up = torch.empty((4, 4096), dtype=torch.bfloat16, device="meta")
(build,) = foreseen(H200, lambda: silu_mul_rows(gate_up))
source = build.kernel.ASTSource(build.kernel, build.signature, build.constants, build.attributes)
ptx = triton.compile(source, target=target_of(H200), options=build.options).asm["ptx"]
print(json.dumps([ptx.count("ex2.approx.ftz.f32"), ptx.count("rcp.approx.ftz.f32"), ptx.count("cvt.rn.bf16x2.f32")]))
"""


def test_gates_take_two_instructions_of_the_cards_own() -> None:
    exponentials, reciprocals, roundings = compiled(COMPILE)
    assert exponentials == reciprocals == 2 * roundings > 0
