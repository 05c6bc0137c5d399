"""How fast the engine gets through its requests, to tell a client that is refused when to come back. No I/O."""

from __future__ import annotations

import math
import random

MEMORY = 0.1  # weight of the newest interval
LONGEST_S = 60


class Pace:
    """The mean time between two requests that end, lately. Clock readings are passed in."""

    def __init__(self, chance: random.Random | None = None) -> None:
        self._interval_s: float | None = None
        self._last_s: float | None = None
        self._chance = chance or random.Random()

    def on_finish(self, now_s: float) -> None:
        if self._last_s is not None:
            # A pause without work says nothing about speed; one interval cannot count for more than the limit.
            interval_s = min(now_s - self._last_s, LONGEST_S)
            before_s = interval_s if self._interval_s is None else self._interval_s
            self._interval_s = before_s + MEMORY * (interval_s - before_s)
        self._last_s = now_s

    def retry_after_s(self, waiting: int) -> int:
        """When `waiting` requests will have been served, give or take a fifth: clients must not all return at once."""
        estimate_s = waiting * (self._interval_s or 0.0) * self._chance.uniform(0.8, 1.2)
        return min(max(math.ceil(estimate_s), 1), LONGEST_S)
