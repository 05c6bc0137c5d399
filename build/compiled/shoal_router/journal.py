"""Told what happens to requests, for those who want to know: the access log and traces.

Where nobody does there is no journal, and a request costs the question whether there is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shoal_api.spans import SpanSender
from shoal_api.trace_context import TraceContext
from shoal_router.access_log import AccessLog
from shoal_router.record import Record
from shoal_router.request import Request
from shoal_router.request_spans import spans_of
from shoal_router.routes import ROUTES


class Journal:
    """At least one of `access_log` and `sender`. `now` counts seconds, in fractions of a millisecond."""

    def __init__(
        self, access_log: AccessLog | None, sender: SpanSender | None, now: Callable[[], float]
    ) -> None:
        self.now = now
        self._access_log = access_log
        self._sender = sender

    def begin(self, request: Request, model: str, *, stream: bool) -> Record:
        """A request is about to be proxied. Whoever proxies it tells its record what happens."""
        record = Record(self, request, model, stream=stream)
        if self._sender is not None:
            caller = self._sender.context(request.head.traceparent)
            record.parent_id = caller.span_id
            record.context = caller.child(self._sender.rng)
        return record

    def child(self, context: TraceContext) -> TraceContext:
        """A new span below another."""
        assert self._sender is not None
        return context.child(self._sender.rng)

    def own_reply(self, request: Request | None, status: int) -> None:
        """The router answered by itself what was never proxied; without a request, bytes that are none."""
        route = ROUTES.get(request.path) if request is not None else None
        if request is not None and route is not None and route.work is not None:
            self.begin(request, "", stream=False).end(status)
        elif self._access_log is not None:  # what probes and scrapers ask is no trace
            Record(self, request).end(status)

    def ended(self, record: Record) -> None:
        """Called by a record that is complete."""
        now_s, at = self.now(), time.time()
        if self._access_log is not None:
            self._access_log.put(record, now_s, at)
        if self._sender is not None and record.context is not None and record.context.sampled:
            self._sender.send(spans_of(record, now_s, at))
