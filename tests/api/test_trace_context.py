"""`traceparent` means to us what it means to OpenTelemetry."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shoal_api.trace_context import TraceContext

HEX = "0123456789abcdef"
PARTS = st.tuples(
    st.sampled_from(["00", "00", "01", "ff", "0", "cc", "0G"]),
    st.one_of(st.text(HEX, min_size=32, max_size=32), st.just("0" * 32), st.text(HEX.upper(), max_size=33)),
    st.one_of(st.text(HEX, min_size=16, max_size=16), st.just("0" * 16), st.text(HEX, max_size=17)),
    st.one_of(st.text(HEX, min_size=2, max_size=2), st.just("1")),
    st.sampled_from(["", "", "-", "-more", "x"]),
).map(lambda parts: "-".join(parts[:4]) + parts[4])


@given(PARTS)
@example("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
@example("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03-what-comes-later")
def test_a_header_means_what_opentelemetry_says(header: str) -> None:
    theirs = get_current_span(TraceContextTextMapPropagator().extract({"traceparent": header}))
    context = theirs.get_span_context()
    ours = TraceContext.parse(header)
    if context.is_valid:
        assert ours == TraceContext(context.trace_id, context.span_id, context.trace_flags.sampled)
    else:
        assert ours is None


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_what_is_written_is_read_back(trace_id: int, span_id: int, sampled: bool) -> None:
    context = TraceContext(trace_id, span_id, sampled)
    assert TraceContext.parse(context.traceparent) == context


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.0, 0, 0), (0.25, 200, 300), (1.0, 1000, 1000)])
def test_new_traces_are_sampled_in_the_share_asked_for(ratio: float, low: int, high: int) -> None:
    rng = random.Random(1)
    begun = [TraceContext.begin(rng, ratio) for _ in range(1000)]
    assert low <= sum(context.sampled for context in begun) <= high
    assert len({context.trace_id for context in begun}) == 1000


def test_a_child_stays_in_its_trace() -> None:
    parent = TraceContext(7, 8, True)
    child = parent.child(random.Random(1))
    assert (child.trace_id, child.sampled) == (7, True)
    assert child.span_id not in (0, 8)
