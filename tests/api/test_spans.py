"""What a collector gets, read with OpenTelemetry's own protobuf; and that nothing is imported before tracing is on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shoal_api.spans import Kind, Span, SpanSender
from shoal_api.trace_context import TraceContext
from tests.collector import collecting

ROOT = Path(__file__).parents[2]


def test_a_collector_reads_what_was_sent() -> None:
    inner = Span(
        "b", Kind.CLIENT, TraceContext(1, 3, True), 2, 20, 30, {"n": 4, "s": ["x"], "f": 0.5}, "lost"
    )
    outer = Span("a", Kind.SERVER, TraceContext(1, 2, True), 0, 10, 40, {"k": "v", "t": True})
    with collecting() as collector:
        sender = SpanSender.to(collector.url, "shoal-router", 1.0)
        sender.send([outer, inner])
        sender.close()
    a, b = collector.named("a"), collector.named("b")
    assert (a.trace_id, a.span_id, a.parent_id) == (f"{1:032x}", f"{2:016x}", "")
    assert (b.trace_id, b.span_id, b.parent_id) == (f"{1:032x}", f"{3:016x}", f"{2:016x}")
    assert (a.kind, a.start_ns, a.end_ns, a.error, a.service) == (2, 10, 40, "", "shoal-router")
    assert (b.kind, b.start_ns, b.end_ns, b.error) == (3, 20, 30, "lost")
    assert a.attributes == {"k": "v", "t": True}
    assert b.attributes["n"] == 4
    assert b.attributes["f"] == 0.5


def test_the_environment_may_name_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    with collecting() as collector:
        sender = SpanSender.to(collector.url + "/", "shoal-router", 1.0)
        sender.send([Span("a", Kind.INTERNAL, TraceContext(1, 2, True), 0, 10, 40)])
        sender.close()
    assert collector.named("a").service == "mine"


def test_a_trace_is_continued_or_begun_with_the_ratio() -> None:
    with collecting() as collector:
        sender = SpanSender.to(collector.url, "s", 0.0)
        continued = TraceContext(5, 6, True)
        assert sender.context(continued.traceparent) == continued
        for header in ("", "nonsense"):
            begun = sender.context(header)
            assert (begun.span_id, begun.sampled) == (0, False)
        sender.close()


@pytest.mark.parametrize("module", ["shoal_router.__main__", "shoal_engine.__main__", "shoal_api.spans"])
def test_opentelemetry_is_not_imported_while_tracing_is_off(module: str) -> None:
    code = f"import {module}, sys; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    paths = ":".join(str(ROOT / folder) for folder in ("crds", "router", "engine"))
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": paths}, timeout=60)
