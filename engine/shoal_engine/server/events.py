"""The events of one stream as bytes, in the order in which a client reads them. Pure; knows no sockets and no engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shoal_engine.choice_text import Delta
from shoal_engine.server.protocol import StreamOptions
from shoal_engine.server.replies import DONE, event
from shoal_engine.server.shape import Meter, Shape

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect a stream before it passes anything on
]


class Events:
    """First `opening`, then `news` as long as there are any, then `end`; resumable_events.py adds to each."""

    def __init__(self, shape: Shape, meter: Meter, options: StreamOptions | None) -> None:
        self._shape = shape
        self._meter = meter
        self._with_usage = bool(options and options.include_usage)
        self._usage_in_each = bool(options and options.continuous_usage_stats)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Of the reply, when its first event is about to be sent."""
        return HEADERS

    def opening(self) -> bytes:
        return b"".join(map(self._chunk, self._shape.opening()))

    def news(self, deltas: Iterable[tuple[int, Delta]]) -> bytes:
        """What is there to show of deltas by choice; often nothing."""
        chunks = [self._shape.chunk(choice, delta) for choice, delta in deltas]
        return b"".join([self._chunk(chunk) for chunk in chunks if chunk is not None])

    def end(self) -> bytes:
        return self._usage() + DONE

    def _usage(self) -> bytes:
        if not self._with_usage:
            return b""
        closing = self._shape.closing()
        closing.usage = self._meter.usage()
        return event(closing)

    def _chunk(self, chunk: Any) -> bytes:
        if self._with_usage:
            chunk.usage = self._meter.usage() if self._usage_in_each else None
        return event(chunk)
