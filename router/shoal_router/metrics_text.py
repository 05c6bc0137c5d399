"""The router's counters and its replicas' as Prometheus text. Counts nothing: metrics.py does.

Not compiled with the rest: mypyc makes a float of an int that stands for one, and it would be printed as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from shoal_router.endpoints import Endpoint
from shoal_router.metrics import Histogram, Metrics
from shoal_router.prefix_index import PrefixIndex
from shoal_router.standing import State


def render(
    metrics: Metrics,
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
            {labels(model=m, code=str(status)): n for (m, status), n in metrics.requests.items()},
        ),
        *counter(
            "errors",
            "Errors that the router itself reported, not a replica.",
            {labels(code=code): n for code, n in metrics.errors.items()},
        ),
        *counter(
            "retries",
            "Attempts repeated before the first byte.",
            {labels(reason=reason): n for reason, n in metrics.retries.items()},
        ),
        *counter("broken_replies", "Replies cut off after their first byte.", {"": metrics.broken_replies}),
        *counter("client_disconnects", "Clients that left before the end.", {"": metrics.client_disconnects}),
        *histogram("request_duration_seconds", "From request to the reply's end.", metrics.duration),
        *histogram("first_byte_seconds", "From request to the reply's first byte.", metrics.first_byte),
        *gauge("active_requests", "Requests being proxied.", {"": active}),
        *gauge(
            "held_requests",
            "Requests that wait here for a replica, or for one with room.",
            {labels(model=model): count for model, count in held.items()},
        ),
        *histogram(
            "queue_wait_seconds", "From request to an attempt, of those that waited.", metrics.queue_wait
        ),
        *counter(
            "queue_refusals",
            "Requests that might not wait here, or no longer.",
            {labels(reason=reason): n for reason, n in metrics.queue_refusals.items()},
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
