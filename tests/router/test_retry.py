"""When a failed attempt is repeated, and when a broken-off stream may go on."""

from __future__ import annotations

import pytest

from shoal_router.failure import Failure
from shoal_router.retry import FRESH, MAX_DEATHS, RetryLimits, may_resume, may_retry

LIMITS = RetryLimits(max_retries=2, budget=0.2)

CASES = [
    ("first connect error", [], Failure.CONNECT, 10, 0, True),
    ("second connect error", [Failure.CONNECT], Failure.CONNECT, 10, 0, True),
    ("retries are spent", [Failure.CONNECT, Failure.REFUSED], Failure.CONNECT, 10, 0, False),
    ("first death", [], Failure.LOST, 10, 0, True),
    ("second death of others", [Failure.LOST], Failure.LOST, 10, 0, True),
    ("third", [Failure.LOST, Failure.LOST], Failure.LOST, 10, 0, False),
    ("second silence", [Failure.TIMEOUT], Failure.TIMEOUT, 10, 0, False),
    ("silence counts as a death", [Failure.TIMEOUT], Failure.LOST, 10, 0, False),
    ("death after a refusal", [Failure.REFUSED], Failure.LOST, 10, 0, True),
    ("refusal after a death", [Failure.LOST], Failure.REFUSED, 10, 0, True),
    ("stale connection is free", [Failure.CONNECT, Failure.CONNECT], Failure.STALE, 10, 99, True),
    ("but only once", [Failure.STALE], Failure.STALE, 10, 0, False),
    ("a replica's death moves all its requests", [], Failure.LOST, 4, 99, True),
    ("so does its refusal", [], Failure.REFUSED, 4, 99, True),
    ("once each", [Failure.REFUSED], Failure.REFUSED, 4, 3, False),
    ("three at a time are always allowed", [], Failure.TIMEOUT, 1, 2, True),
    ("a fourth is over the budget of few", [], Failure.TIMEOUT, 4, 3, False),
    ("a fifth of many is the budget", [], Failure.TIMEOUT, 100, 19, True),
    ("and not more", [], Failure.TIMEOUT, 100, 20, False),
]


@pytest.mark.parametrize(
    ("past", "failure", "active", "retrying", "allowed"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_retry_is_bounded_by_attempts_deaths_and_budget(
    past: list[Failure], failure: Failure, active: int, retrying: int, allowed: bool
) -> None:
    history = FRESH
    for earlier in past:
        history = history.after(earlier)
    assert may_retry(failure, history, LIMITS, active=active, retrying=retrying) is allowed
    if failure is not Failure.STALE:
        assert not may_retry(failure, history, LIMITS, active=99, retrying=0, suspected=True)


RESUMES: list[tuple[list[tuple[Failure, bool]], bool, int]] = [
    # (failure, whether a token had come) one after another; may it go on; deaths that speak against it
    ([(Failure.LOST, True)] * MAX_DEATHS, True, 0),
    ([(Failure.LOST, True)] * (MAX_DEATHS + 1), False, 0),
    ([(Failure.LOST, False)], True, 1),
    ([(Failure.LOST, False), (Failure.LOST, True), (Failure.LOST, False)], True, 2),
    ([(Failure.BAD_REPLY, False)] * MAX_DEATHS, True, 0),
    ([(Failure.TIMEOUT, False)] * MAX_DEATHS, True, 0),  # silence is no proof of a death
    ([(Failure.CONNECT, False)] * 50, True, 0),  # nothing was risked; the wait has an end of its own
    ([(Failure.REFUSED, False)] * 50, True, 0),
    ([(Failure.STALE, False)], True, 0),
    ([(Failure.LOST, True), (Failure.STALE, False)] * MAX_DEATHS, True, 0),
]


@pytest.mark.parametrize(("failures", "allowed", "fruitless"), RESUMES)
def test_stream_goes_on_as_often_as_it_gets_on(
    failures: list[tuple[Failure, bool]], allowed: bool, fruitless: int
) -> None:
    history = FRESH
    for failure, fruitful in failures:
        history = history.after(failure, begun=True, fruitful=fruitful)
    assert (may_resume(history), history.fruitless) == (allowed, fruitless)
    assert history.retries == 0, "a resume takes nothing from the budget of retries"
