"""Floors against published sizes (the script's own selftest), and what must hold of any bound."""

from __future__ import annotations

import pytest
import roofline
from hypothesis import given
from hypothesis import strategies as st
from roofline import Ceilings, Cost, output_rate
from shapes import LLAMA31_8B, QWEN3_06B

CHIP = Ceilings()
COSTS = st.sampled_from([Cost(QWEN3_06B), Cost(LLAMA31_8B), Cost(LLAMA31_8B, 1, 1)])
SIZES = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 40)), min_size=1, max_size=6)


def test_the_selftest_passes(capsys) -> None:
    roofline.selftest()
    assert capsys.readouterr().out == "selftest ok\n"


@given(COSTS, st.integers(1, 512), st.integers(1, 9000))
def test_more_work_never_takes_less(cost: Cost, batch: int, context: int) -> None:
    step_s = cost.decode_s(CHIP, CHIP.read, batch, context)
    assert cost.decode_s(CHIP, CHIP.read, batch + 1, context) >= step_s
    assert cost.decode_s(CHIP, CHIP.read, batch, context + 1) > step_s
    assert cost.decode_s(CHIP, CHIP.copy, batch, context) >= step_s
    assert cost.decode_s(CHIP, CHIP.read, batch, context, shared=context) <= step_s


@given(COSTS, SIZES)
def test_a_run_is_its_prompts_and_its_steps(cost: Cost, sizes: list[tuple[int, int]]) -> None:
    alone = [cost.run_s(CHIP, [one]) for one in sizes]
    together = cost.run_s(CHIP, sizes)
    assert max(alone) <= together * (1 + 1e-9)
    assert together <= sum(alone) * (1 + 1e-9)
    assert output_rate(cost, CHIP, sizes) == pytest.approx(sum(new for _, new in sizes) / together)


@given(COSTS, st.integers(1, 4000), st.integers(1, 4000))
def test_a_cached_prefix_saves_what_its_own_prefill_costs(cost: Cost, cached: int, tokens: int) -> None:
    head_s = 2 * cost.head_params / CHIP.bf16  # the logits of the prefix's last token, which nobody needs
    in_two = cost.prefill_s(CHIP, cached) - head_s + cost.prefill_s(CHIP, tokens, cached)
    assert in_two == pytest.approx(cost.prefill_s(CHIP, cached + tokens))
