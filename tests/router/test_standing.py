"""What faults, successes and health checks do to a replica's standing."""

from __future__ import annotations

import pytest

from shoal_router.standing import (
    ABSENT,
    FIRST_PAUSE_S,
    GIVE_UP_EJECTIONS,
    HEALTHY,
    LONGEST_PAUSE_S,
    Outcome,
    Standing,
    State,
    after_outcome,
    after_ready,
    after_unreachable,
)

SUSPECT = Standing(State.SUSPECT, 0, 1, 10.0)
HALF_OPEN = Standing(State.HALF_OPEN, 0, 1, 10.0)

OUTCOMES = [
    (HEALTHY, Outcome.SUCCESS, State.HEALTHY),
    (HEALTHY, Outcome.HARD_FAULT, State.SUSPECT),
    (HEALTHY, Outcome.UNREACHABLE, State.SUSPECT),
    (HEALTHY, Outcome.SOFT_FAULT, State.HEALTHY),
    (HEALTHY, Outcome.NOT_READY, State.ABSENT),
    (SUSPECT, Outcome.SUCCESS, State.SUSPECT),
    (SUSPECT, Outcome.NOT_READY, State.ABSENT),
    (HALF_OPEN, Outcome.SUCCESS, State.HEALTHY),
    (HALF_OPEN, Outcome.HARD_FAULT, State.SUSPECT),
    (HALF_OPEN, Outcome.SOFT_FAULT, State.SUSPECT),
    (ABSENT, Outcome.SUCCESS, State.ABSENT),
    (ABSENT, Outcome.HARD_FAULT, State.ABSENT),
]


@pytest.mark.parametrize(("before", "outcome", "state"), OUTCOMES)
def test_outcome_of_a_request_moves_the_state(before: Standing, outcome: Outcome, state: State) -> None:
    assert after_outcome(before, outcome, 20.0).state is state


def test_three_soft_faults_in_a_row_eject_and_a_success_between_them_does_not() -> None:
    standing = HEALTHY
    for outcome in (Outcome.SOFT_FAULT, Outcome.SOFT_FAULT, Outcome.SUCCESS) * 3:
        standing = after_outcome(standing, outcome, 0.0)
    assert standing.state is State.HEALTHY
    for _ in range(3):
        standing = after_outcome(standing, Outcome.SOFT_FAULT, 0.0)
    assert standing.state is State.SUSPECT


def test_ejected_replica_comes_back_half_open_only_after_its_pause() -> None:
    ejected = after_outcome(HEALTHY, Outcome.HARD_FAULT, 100.0)
    assert after_ready(ejected, 100.0 + FIRST_PAUSE_S - 0.01).state is State.SUSPECT
    assert after_ready(ejected, 100.0 + FIRST_PAUSE_S).state is State.HALF_OPEN


def test_pause_doubles_with_each_ejection_up_to_a_limit_and_a_success_resets_it() -> None:
    standing, now, pauses = HEALTHY, 0.0, []
    for _ in range(7):
        standing = after_outcome(standing, Outcome.HARD_FAULT, now)
        pauses.append(standing.pause_until_s - now)
        now = standing.pause_until_s
        standing = after_ready(standing, now)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    assert after_outcome(standing, Outcome.SUCCESS, now) == HEALTHY


def test_requests_that_were_under_way_do_not_lengthen_the_pause() -> None:
    ejected = after_outcome(HEALTHY, Outcome.HARD_FAULT, 100.0)
    assert after_outcome(ejected, Outcome.HARD_FAULT, 100.1) == ejected


def test_only_a_replica_without_a_listener_is_taken_for_gone_until_it_answers() -> None:
    refused = after_outcome(HEALTHY, Outcome.UNREACHABLE, 0.0)
    assert (refused.state, refused.unreachable) == (State.SUSPECT, True)
    assert not after_outcome(HEALTHY, Outcome.HARD_FAULT, 0.0).unreachable
    reset = after_outcome(HEALTHY, Outcome.HARD_FAULT, 0.0)
    assert after_outcome(reset, Outcome.UNREACHABLE, 0.1).unreachable, "a later attempt finds out"
    assert after_unreachable(HEALTHY, 0.0, hard=True).unreachable
    assert not after_ready(refused, 10.0).unreachable


def test_unreachable_replica_is_given_up_after_many_ejections() -> None:
    standing, now = HEALTHY, 0.0
    for _ in range(GIVE_UP_EJECTIONS):
        assert standing.state is not State.ABSENT
        standing = after_unreachable(standing, now, hard=True)
        now = max(now, standing.pause_until_s)
    assert standing == ABSENT
    assert after_ready(standing, now) == HEALTHY


def test_one_health_check_without_an_answer_ejects_nobody() -> None:
    assert after_unreachable(HEALTHY, 0.0, hard=False).state is State.HEALTHY
    assert after_unreachable(HEALTHY, 0.0, hard=True).state is State.SUSPECT
