"""Counters of the router: plain integers, made into Prometheus text when somebody asks.

Nothing is counted per chunk.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from time import time
from typing import Final

from shoal_router.endpoints import Endpoint
from shoal_router.errors import RouterError
from shoal_router.prefix_index import PrefixIndex
from shoal_router.standing import State

SECONDS: Final = (
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
        self.requests: Counter[tuple[str, int]] = Counter()  # (model, status) of proxied requests that ended
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
        self.requests[model, status] += 1
        self.duration.observe(seconds)

    def render(
        self,
        *,
        endpoints: Iterable[Endpoint],
        index: PrefixIndex,
        connections: int,
        active: int,
        held: Mapping[str, int],
        more: Iterable[str] = (),
    ) -> bytes:
        """Everything in Prometheus' text format."""
        lines = [
            *counter(
                "requests",
                "Proxied requests that ended.",
                {labels(model=m, code=str(status)): n for (m, status), n in self.requests.items()},
            ),
            *counter(
                "errors",
                "Errors that the router itself reported, not a replica.",
                {labels(code=code): n for code, n in self.errors.items()},
            ),
            *counter(
                "retries",
                "Attempts repeated before the first byte.",
                {labels(reason=reason): n for reason, n in self.retries.items()},
            ),
            *counter("broken_replies", "Replies cut off after their first byte.", {"": self.broken_replies}),
            *counter(
                "client_disconnects", "Clients that left before the end.", {"": self.client_disconnects}
            ),
            *histogram("request_duration_seconds", "From request to the reply's end.", self.duration),
            *histogram("first_byte_seconds", "From request to the reply's first byte.", self.first_byte),
            *gauge("active_requests", "Requests being proxied.", {"": active}),
            *gauge(
                "held_requests",
                "Requests that wait here for a replica, or for one with room.",
                {labels(model=model): count for model, count in held.items()},
            ),
            *histogram(
                "queue_wait_seconds", "From request to an attempt, of those that waited.", self.queue_wait
            ),
            *counter(
                "queue_refusals",
                "Requests that might not wait here, or no longer.",
                {labels(reason=reason): n for reason, n in self.queue_refusals.items()},
            ),
            *gauge("client_connections", "Open client connections.", {"": connections}),
            *gauge("index_blocks", "Different prompt blocks in the prefix index.", {"": len(index)}),
            *_endpoints(list(endpoints), index),
            *more,
        ]
        return ("\n".join(lines) + "\n").encode()


def _endpoints(endpoints: list[Endpoint], index: PrefixIndex) -> Iterator[str]:
    def each(value: Mapping[Endpoint, float]) -> dict[str, float]:
        return {labels(replica=endpoint.address.key): number for endpoint, number in value.items()}

    yield from gauge(
        "replica_state",
        "1 for the state that the replica is in.",
        {
            labels(replica=e.address.key, state=state): int(e.state is state)
            for e in endpoints
            for state in State
        },
    )
    gauges = {
        "replica_link_up": (
            "1 while its engine pushes load and cache; 0 when they are polled and believed.",
            {e: int(e.linked) for e in endpoints},
        ),
        "replica_in_flight": ("Requests sent and not ended.", {e: e.in_flight for e in endpoints}),
        "replica_queued_tokens": (
            "Uncached prompt tokens without a first byte.",
            {e: round(e.queued_tokens) for e in endpoints},
        ),
        "replica_index_blocks": (
            "Prompt blocks believed cached.",
            {e: index.size(e.slot) for e in endpoints},
        ),
    }
    for name, (text, values) in gauges.items():
        yield from gauge(name, text, each(values))
    counters = {
        "replica_requests": ("Requests sent.", {e: e.tally.requests for e in endpoints}),
        "replica_faults": ("Attempts that the replica failed.", {e: e.tally.faults for e in endpoints}),
        "replica_ejections": ("Times it was taken out.", {e: e.tally.ejections for e in endpoints}),
        "prompt_tokens": ("Prompt tokens, as engines count.", {e: e.tally.prompt_tokens for e in endpoints}),
        "predicted_cached_tokens": (
            "Prompt tokens believed cached.",
            {e: e.tally.predicted_tokens for e in endpoints},
        ),
        "cached_tokens": ("Prompt tokens really cached.", {e: e.tally.cached_tokens for e in endpoints}),
        "contradictions": (
            "Beliefs about a cache found wrong.",
            {e: e.tally.contradictions for e in endpoints},
        ),
        "replica_updates": ("Updates that its engine pushed.", {e: e.tally.updates for e in endpoints}),
        "replica_snapshots": (
            "Of these, those with its whole cache.",
            {e: e.tally.snapshots for e in endpoints},
        ),
        "replica_update_gaps": (
            "Times that an update was lost and a snapshot asked for.",
            {e: e.tally.gaps for e in endpoints},
        ),
    }
    for name, (text, values) in counters.items():
        yield from counter(name, text, each(values))


def labels(**labels: str) -> str:
    escaped = {k: v.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for k, v in labels.items()}
    return "{" + ",".join(f'{k}="{v}"' for k, v in escaped.items()) + "}"


def counter(name: str, text: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# HELP shoal_router_{name}_total {text}"
    yield f"# TYPE shoal_router_{name}_total counter"
    for labels, value in values.items():
        yield f"shoal_router_{name}_total{labels} {value}"


def gauge(name: str, text: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# HELP shoal_router_{name} {text}"
    yield f"# TYPE shoal_router_{name} gauge"
    for labels, value in values.items():
        yield f"shoal_router_{name}{labels} {value}"


def histogram(name: str, text: str, histogram: Histogram) -> Iterator[str]:
    full = f"shoal_router_{name}"
    yield f"# HELP {full} {text}"
    yield f"# TYPE {full} histogram"
    below = 0
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        below += count
        yield f'{full}_bucket{{le="{bound}"}} {below}'
    yield f"{full}_sum {histogram.total}"
    yield f"{full}_count {below}"
