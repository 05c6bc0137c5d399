"""What /metrics tells of requests whose replicas failed, as Prometheus text. Counts nothing itself."""

from __future__ import annotations

from collections.abc import Iterator

from shoal_router.metrics_text import counter, gauge, labels
from shoal_router.proxy import Proxy


def failure_lines(proxy: Proxy) -> Iterator[str]:
    """Resumed streams, those that wait to be, and quarantined requests."""
    metrics, quarantine = proxy.metrics, proxy.quarantine
    yield from counter(
        "resumes",
        "Times a stream's replica died and another went on, or why none did.",
        {labels(outcome=outcome): n for outcome, n in metrics.resumes.items()},
    )
    yield from counter(
        "resumed_tokens",
        "Generated tokens that another replica was given to go on from.",
        {"": metrics.resumed_tokens},
    )
    waiting = {"": len(proxy.interrupted.streams)}
    yield from gauge("interrupted_streams", "Streams that wait for a replica to go on.", waiting)
    yield from gauge("resume_bytes", "Bytes of requests kept so that they can.", {"": proxy.kept_bytes})
    yield from counter("quarantines", "Requests suspected of killing replicas.", {"": quarantine.total})
    yield from gauge("quarantined_requests", "Of these, refused now.", {"": len(quarantine)})
