"""The model of a step's time, against steps whose cost is known."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, given, settings

from shoal_engine.messages import StepCost
from shoal_engine.step_cost import MIN_PREFILL_STEPS, StepCostFit

costs = st.builds(StepCost, st.floats(1e-4, 5e-2), st.floats(1e-6, 2e-3), st.floats(1e-6, 2e-3))


def seconds(cost: StepCost, tokens: int, sequences: int) -> float:
    return cost.base_s + cost.prefill_token_s * tokens + cost.sequence_s * sequences


def steps(rng: random.Random, count: int) -> list[tuple[int, int]]:
    """Prompt tokens and decodes of steps as a busy engine has them: every third computes a prompt."""
    return [(rng.randint(1, 2048) if rng.random() < 0.33 else 0, rng.randint(1, 64)) for _ in range(count)]


def fitted(fit: StepCostFit, tokens: int, sequences: int) -> float:
    assert fit.cost is not None
    return seconds(fit.cost, tokens, sequences)


@settings(max_examples=10, deadline=None, phases=[Phase.generate])
@given(costs, st.integers(0, 2**32))
def test_the_cost_of_steps_is_found(true: StepCost, seed: int) -> None:
    rng, fit = random.Random(seed), StepCostFit()
    for tokens, sequences in steps(rng, 2000):
        fit.observe(tokens, sequences, seconds(true, tokens, sequences))
    for tokens, sequences in ((0, 1), (0, 64), (512, 0), (2048, 32)):
        assert fitted(fit, tokens, sequences) == pytest.approx(seconds(true, tokens, sequences), rel=0.05)


@settings(max_examples=10, deadline=None, phases=[Phase.generate])
@given(costs, st.integers(0, 2**32))
def test_noise_and_steps_that_were_held_up_hardly_count(true: StepCost, seed: int) -> None:
    rng, fit = random.Random(seed), StepCostFit()
    for tokens, sequences in steps(rng, 3000):
        late_s = rng.uniform(0.5, 5.0) if rng.random() < 0.02 else 0.0
        fit.observe(tokens, sequences, seconds(true, tokens, sequences) * rng.uniform(0.9, 1.1) + late_s)
    for tokens, sequences in ((0, 8), (0, 64), (1024, 32)):
        assert fitted(fit, tokens, sequences) == pytest.approx(seconds(true, tokens, sequences), rel=0.25)


@settings(max_examples=8, deadline=None, phases=[Phase.generate])
@given(costs, st.tuples(*[st.floats(0.2, 5.0)] * 3), st.integers(0, 2**32))
def test_a_machine_that_becomes_another_is_followed(
    before: StepCost, factors: tuple[float, float, float], seed: int
) -> None:
    rng, fit = random.Random(seed), StepCostFit()
    after = StepCost(
        before.base_s * factors[0], before.prefill_token_s * factors[1], before.sequence_s * factors[2]
    )
    for cost, count in ((before, 1000), (after, 8000)):
        for tokens, sequences in steps(rng, count):
            fit.observe(tokens, sequences, seconds(cost, tokens, sequences))
    for tokens, sequences in ((0, 32), (1024, 32)):
        assert fitted(fit, tokens, sequences) == pytest.approx(seconds(after, tokens, sequences), rel=0.15)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4096), st.integers(0, 256), st.floats(0.0, 1e3)), max_size=200))
def test_whatever_comes_no_part_is_negative_or_not_a_number(
    observed: list[tuple[int, int, float]],
) -> None:
    fit = StepCostFit()
    for tokens, sequences, taken_s in observed:
        fit.observe(tokens, sequences, taken_s)
        if fit.cost is not None:
            assert all(
                part >= 0.0 for part in (fit.cost.base_s, fit.cost.prefill_token_s, fit.cost.sequence_s)
            )


def test_long_decoding_does_not_make_prompts_forgotten() -> None:
    true, fit = StepCost(0.004, 0.0002, 0.0001), StepCostFit()
    for tokens, sequences in steps(random.Random(1), 1000):
        fit.observe(tokens, sequences, seconds(true, tokens, sequences))
    for _ in range(5_000):
        fit.observe(0, 32, seconds(true, 0, 32))
    assert fitted(fit, 1024, 32) == pytest.approx(seconds(true, 1024, 32), rel=0.05)
    assert fitted(fit, 0, 32) == pytest.approx(seconds(true, 0, 32), rel=0.02)


def test_there_is_no_cost_before_prompts_have_been_seen() -> None:
    fit = StepCostFit()
    for _ in range(1000):
        fit.observe(0, 4, 0.01)
    assert fit.cost is None
    for _ in range(16 * MIN_PREFILL_STEPS):
        fit.observe(100, 4, 0.03)
    assert fit.cost is not None
