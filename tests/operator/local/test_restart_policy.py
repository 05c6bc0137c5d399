"""When a dead process starts again: a table of histories."""

from __future__ import annotations

import pytest

from shoal_operator.local.restart_policy import Record, RestartPolicy, after_death, restart_delay_s

POLICY = RestartPolicy(first_delay_s=1, max_delay_s=8, stable_s=60, max_start_failures=3)


def delays(served: list[float | None], permanent: bool = False) -> list[float | None]:
    """The delay after each death of a process that served so long in each of its lives."""
    record, found = Record(), []
    for served_s in served:
        record = after_death(record, POLICY, served_s)
        found.append(restart_delay_s(record, POLICY, permanent))
    return found


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        pytest.param([None, None, None], [1, 2, None], id="never ready: given up after three"),
        pytest.param(
            [1, 1, 1, 1, 1, 1], [1, 2, 4, 8, 8, 8], id="ready but short-lived: ever slower, never given up"
        ),
        pytest.param(
            [1, None, None, None, None], [1, 2, 4, 8, 8], id="once ready: loading again may fail for ever"
        ),
        pytest.param([None, None, 5, None], [1, 2, 4, 8], id="ready at the third start: not given up"),
        pytest.param([1, 1, 60, 1], [1, 2, 1, 2], id="a stable life clears the record"),
    ],
)
def test_delays_double_until_a_stable_life(served: list[float | None], expected: list[float | None]) -> None:
    assert delays(served) == expected


def test_permanent_cause_is_given_up_at_once_unless_it_has_served() -> None:
    assert delays([None], permanent=True) == [None]
    assert delays([5, None], permanent=True) == [1, 2]


def test_thousands_of_deaths_keep_the_longest_delay() -> None:
    assert restart_delay_s(Record(failures=5000, ever_ready=True), POLICY) == 8
