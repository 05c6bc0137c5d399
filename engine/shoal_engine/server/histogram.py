"""Counts of observations by size, cheap enough to be fed by every token: one search and two additions, no
lock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """Observations in buckets with upper bounds `bounds` and one more without. For one thread."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0  # sum of all observed values

    def observe(self, value: float, count: int = 1) -> None:
        """`count` observations of the same value."""
        self._counts[bisect_left(self.bounds, value)] += count
        self.total += value * count

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), as Prometheus wants them: cumulative, ending with "+Inf"."""
        cumulative = 0
        result = []
        for bound, count in zip((*map(repr, self.bounds), "+Inf"), self._counts, strict=True):
            cumulative += count
            result.append((bound, float(cumulative)))
        return result
