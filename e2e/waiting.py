"""Waiting for a cluster to become what it should be, with a reason when it does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

PERIOD_S = 0.5


def wait_until(
    look: Callable[[], Found | None],
    what: str,
    timeout_s: float,
    explain: Callable[[], str] = str,
    period_s: float = PERIOD_S,
) -> Found:
    """The first true result of `look`. Raises AssertionError with `what` and explain() when none comes in time."""
    until = time.monotonic() + timeout_s
    while True:
        if found := look():
            return found
        if time.monotonic() > until:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}\n{explain()}")
        time.sleep(period_s)
