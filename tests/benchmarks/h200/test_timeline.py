"""Which steps count as decode alone, and that no run with lost or failed requests becomes a figure."""

from __future__ import annotations

import pytest
from timeline import Advance, Job, Step, Timeline, drive, steady_steps

from tests.benchmarks.h200.scripted_subject import ScriptedSubject


def jobs(count: int, new: int, prompt: int = 10) -> list[Job]:
    return [Job(f"r{i}", [0] * prompt, new) for i in range(count)]


def test_steady_steps_lie_between_the_last_prefill_and_the_first_end() -> None:
    run = drive(ScriptedSubject(prefills=2), jobs(4, new=10))
    # Steps 1 and 2 prefill two requests each; from step 3 on all decode; two end with step 10, two with step 11.
    # The interval that ends with step 3 begins with step 2, in which all four got a token.
    steady = steady_steps(run)
    assert [step.context for step in steady] == [10 + 1.5 + i for i in range(8)]


def test_their_seconds_are_the_time_between_two_outputs() -> None:
    steps = [Step(end, [Advance("a", 1)]) for end in (1.0, 1.5, 1.75, 2.0)]
    steady = steady_steps(Timeline([Job("a", [0] * 5, 4)], steps, 2.0))
    assert [(step.seconds, step.context) for step in steady] == [(0.5, 6.0), (0.25, 7.0), (0.25, 8.0)]


def test_a_step_beside_others_or_of_many_tokens_is_not_steady() -> None:
    both = [Advance("a", 1), Advance("b", 1)]
    alone, many = [Advance("a", 1)], [Advance("a", 2), Advance("b", 1)]
    order = [both, both, alone, both, both, many, both]
    steps = [Step(float(i), advances) for i, advances in enumerate(order)]
    assert len(steady_steps(Timeline([Job("a", [0], 9), Job("b", [0], 9)], steps, 9.0))) == 2


def test_a_run_counts_tokens_and_finds_the_first() -> None:
    run = drive(ScriptedSubject(prefills=1, step_s=0.002), jobs(3, new=4))
    assert run.new_tokens == 12
    assert 0.002 <= run.first_token_s < run.whole_s
    assert len(run.steps) == 6


def test_a_run_that_lost_tokens_is_no_figure() -> None:
    with pytest.raises(RuntimeError, match="11 tokens came, 12 were asked for"):
        drive(ScriptedSubject(lost_tokens=1), jobs(3, new=4))
