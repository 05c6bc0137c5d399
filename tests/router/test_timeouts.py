"""What counts as too long."""

from __future__ import annotations

import pytest

from shoal_router.timeouts import Overdue, Timeouts, overdue

LIMITS = Timeouts(first_byte_s=10, idle_s=5, total_s=100)

CASES = [
    (99, None, None, None),
    (101, None, None, Overdue.TOTAL),
    (9, 9, None, None),
    (50, 11, None, Overdue.FIRST_BYTE),
    (50, None, 5, None),
    (50, None, 6, Overdue.IDLE),
    (101, 11, 6, Overdue.TOTAL),
]


@pytest.mark.parametrize(("age", "waited", "silent", "late"), CASES)
def test_first_limit_that_is_passed_is_named(
    age: float, waited: float | None, silent: float | None, late: Overdue | None
) -> None:
    assert overdue(LIMITS, age_s=age, waited_s=waited, silent_s=silent) is late
