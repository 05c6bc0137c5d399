from __future__ import annotations

import random

import pytest

from shoal_engine.server.pace import LONGEST_S, Pace


def paced(interval_s: float, count: int = 50) -> Pace:
    pace = Pace(random.Random(1))
    for i in range(count):
        pace.on_finish(i * interval_s)
    return pace


@pytest.mark.parametrize(("interval_s", "waiting", "low", "high"), [(0.5, 20, 8, 12), (2.0, 10, 16, 24)])
def test_a_refused_client_is_told_when_the_queue_will_be_done(
    interval_s: float, waiting: int, low: int, high: int
) -> None:
    pace = paced(interval_s)
    told = {pace.retry_after_s(waiting) for _ in range(200)}
    assert low <= min(told)
    assert max(told) <= high
    assert len(told) > 2  # not all come back in the same second


@pytest.mark.parametrize(
    ("pace", "waiting", "told"),
    [
        (Pace(), 1000, 1),
        (paced(0.001), 5, 1),
        (paced(1000.0), 1000, LONGEST_S),
        (paced(0.5), 10**9, LONGEST_S),
    ],
)
def test_what_is_told_stays_within_a_second_and_a_minute(pace: Pace, waiting: int, told: int) -> None:
    assert pace.retry_after_s(waiting) == told


def test_a_pause_soon_counts_for_little() -> None:
    pace = paced(0.1)
    pace.on_finish(10_000.0)
    for i in range(60):
        pace.on_finish(10_000.1 + i * 0.1)
    assert pace.retry_after_s(10) <= 2
