"""What keys have asked for and whether their file can be read, in Prometheus' text format. Counts nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from shoal_router.gate import Gate
from shoal_router.metrics_text import counter, gauge, labels
from shoal_router.rate_limits import Meter


def key_lines(gate: Gate) -> Iterator[str]:
    """Nothing for a router without a file of keys."""
    watch, meters = gate.watch, gate.meters.by_name
    if watch is None:
        return

    def each(value: Callable[[Meter], int]) -> dict[str, float]:
        return {labels(key=name): value(meter) for name, meter in meters.items()}

    usable, failures = {"": int(watch.usable)}, {"": watch.failures}
    yield from gauge("key_file_usable", "1 unless the file of keys as it is now cannot be read.", usable)
    yield from counter("key_file_failures", "Times that a changed file of keys could not be read.", failures)
    yield from counter("key_requests", "Requests taken, by key.", each(lambda meter: meter.requests))
    yield from counter("key_refusals", "Requests above a key's limits.", each(lambda meter: meter.refused))
    yield from counter("key_tokens", "Tokens of prompts and answers.", each(lambda meter: meter.tokens))
    yield from gauge("key_in_flight", "Requests in progress, by key.", each(lambda meter: meter.in_flight))
