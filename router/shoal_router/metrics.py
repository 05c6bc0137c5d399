"""Counters of the router: plain integers. metrics_text.py makes them into Prometheus' text when somebody asks.

Nothing is counted per chunk.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from time import time
from typing import Final

from shoal_router.errors import RouterError

SECONDS: Final[tuple[float, ...]] = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)

RECENT: Final = 50


class Histogram:
    """Observed values in buckets; `counts` has one more entry than `bounds`, for what lies above."""

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Metrics:
    """What has happened since the router started, apart from what each Endpoint tallies itself."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], int] = {}  # (model, status) of proxied requests that ended
        self.errors: Counter[str] = Counter()  # code of every error that the router itself reported
        self.recent_errors: deque[tuple[float, RouterError]] = deque(maxlen=RECENT)  # and when, for /debug
        self.retries: Counter[str] = Counter()
        self.resumes: Counter[str] = Counter()  # what became of streams whose replica died
        self.resumed_tokens = 0
        self.queue_refusals: Counter[str] = Counter()  # why a request might not wait, or no longer
        self.queue_wait = Histogram()  # of those that did and went on
        self.duration = Histogram()
        self.first_byte = Histogram()
        self.broken_replies = 0
        self.client_disconnects = 0

    def count_error(self, error: RouterError) -> None:
        """The router reported an error to a client."""
        self.errors[error.code] += 1
        self.recent_errors.append((time(), error))

    def finished(self, model: str, status: int, seconds: float) -> None:
        """A proxied request ended, in whatever way."""
        key = model, status
        self.requests[key] = self.requests.get(key, 0) + 1
        self.duration.observe(seconds)
