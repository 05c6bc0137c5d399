"""Spans on their way to an OpenTelemetry collector: made when they are over, sent in batches by a thread.

The packages are those of `shoal[tracing]`, imported only when tracing is on. What a span means is its maker's.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import version
from typing import TYPE_CHECKING

from shoal_api.options import TracingOptions
from shoal_api.trace_context import TraceContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

EXPORT_TIMEOUT_S = 5.0
Value = str | bool | int | float | Sequence[str]


class Kind(Enum):
    """Whether a span answers a request, asks one of another process, or does neither."""

    SERVER = "SERVER"
    CLIENT = "CLIENT"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class Span:
    """One finished piece of work. Times are nanoseconds of the Unix epoch; `error` is what went wrong, if it did."""

    name: str
    kind: Kind
    context: TraceContext
    parent_id: int  # 0 for the first of a trace
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value] = field(default_factory=dict)
    error: str = ""


class TracingUnavailable(Exception):
    """Tracing was asked for and cannot be had."""


class SpanSender:
    """Sends the spans of one process to the collector at `endpoint`, an OTLP/HTTP base URL.

    A collector that is away costs spans, never requests: the queue is bounded.
    """

    def __init__(
        self, exporter: SpanExporter, service: str, ratio: float, *, seed: int | None = None
    ) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self.ratio = ratio
        self.rng = random.Random(seed)
        self._processor = BatchSpanProcessor(exporter)
        instance = {"service.instance.id": socket.gethostname()}  # in a cluster the pod's name
        own = Resource({"service.name": service, "service.version": version("shoal"), **instance})
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word, as everywhere.
        self._resource = own.merge(OTELResourceDetector().detect())
        self._scope = InstrumentationScope(service, version("shoal"))

    @classmethod
    def of(cls, options: TracingOptions, environ: Mapping[str, str], service: str) -> SpanSender | None:
        """A sender as the options or the environment want it; None when neither does. Raises TracingUnavailable."""
        endpoint = options.otlp_endpoint or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        if not endpoint or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return None
        return cls.to(endpoint, service, options.trace_sample_ratio)

    @classmethod
    def to(cls, endpoint: str, service: str, ratio: float) -> SpanSender:
        """A sender to a collector. Raises TracingUnavailable when the packages are not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            raise TracingUnavailable(f"traces need pip install 'shoal[tracing]': {error}") from None
        url = endpoint.rstrip("/") + "/v1/traces"
        return cls(OTLPSpanExporter(endpoint=url, timeout=EXPORT_TIMEOUT_S), service, ratio)

    def context(self, traceparent: str) -> TraceContext:
        """The span that a request's caller is in; the beginning of a new trace when it tells of none."""
        return (TraceContext.parse(traceparent) if traceparent else None) or TraceContext.begin(
            self.rng, self.ratio
        )

    def send(self, spans: Sequence[Span]) -> None:
        """Queue finished spans of sampled traces."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        sampled = TraceFlags(TraceFlags.SAMPLED)
        for span in spans:
            trace_id = span.context.trace_id
            parent = SpanContext(trace_id, span.parent_id, False, sampled) if span.parent_id else None
            self._processor.on_end(
                ReadableSpan(
                    span.name,
                    context=SpanContext(trace_id, span.context.span_id, False, sampled),
                    parent=parent,
                    resource=self._resource,
                    attributes=dict(span.attributes),
                    kind=SpanKind[span.kind.value],
                    status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
                    start_time=span.start_ns,
                    end_time=max(span.end_ns, span.start_ns),
                    instrumentation_scope=self._scope,
                )
            )

    def close(self) -> None:
        """Send what is queued, for at most a few seconds, and end the thread."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]
