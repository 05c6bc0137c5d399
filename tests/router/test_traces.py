"""The spans of a request as a collector reads them: from the client through the router to the engine."""

from __future__ import annotations

import asyncio

from shoal_api.spans import SpanSender
from tests.collector import Collected, Collector, collecting
from tests.router.conftest import Run
from tests.router.resumable_engine import Engine, boundary
from tests.router.resumed import STEPS, WHOLE, begun, fleet, whole_stream
from tests.router.scripted import (
    Replica,
    chat,
    get,
    post,
    rig,
)
from tests.router.told import LOGGED, TRACEPARENT, UNSAMPLED, Lines, dies, streamed


async def traced(
    collector: Collector, *replicas: Replica, requests: list[bytes], ratio: float = 1.0
) -> list[Collected]:
    """The spans of these requests, sent one after another."""
    sender = SpanSender.to(collector.url, "shoal-router", ratio)
    async with rig(*replicas, sender=sender) as r:
        for request in requests:
            await r.ask(request)
    await asyncio.to_thread(sender.close)
    return collector.spans


def test_a_trace_goes_from_the_client_through_the_router_to_the_engine(run: Run) -> None:
    async def scenario() -> None:
        replica = Replica(script=streamed)
        request = post(
            headers=f"Traceparent: {TRACEPARENT}\r\nTracestate: a=b\r\nConnection: close\r\n",
            body=chat("hi", stream=True),
        )
        with collecting() as collector:
            await traced(collector, replica, requests=[request])
        server, attempt = collector.named("POST /v1/chat/completions"), collector.named("attempt")
        trace_id, client_span = TRACEPARENT.split("-")[1:3]
        assert (server.trace_id, server.parent_id) == (trace_id, client_span)
        assert (attempt.trace_id, attempt.parent_id) == (trace_id, server.span_id)
        (received,) = replica.requests
        assert received.headers["traceparent"] == f"00-{trace_id}-{attempt.span_id}-01"
        assert received.headers["tracestate"] == "a=b"
        assert received.raw_head.lower().count(b"traceparent") == 1
        assert (server.kind, attempt.kind) == (2, 3)
        assert server.start_ns <= attempt.start_ns < attempt.end_ns <= server.end_ns
        said = server.attributes
        assert said["http.request.method"] == "POST"
        assert said["http.response.status_code"] == attempt.attributes["http.response.status_code"] == 200
        assert (said["gen_ai.request.model"], said["gen_ai.operation.name"]) == ("m", "chat")
        assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (30, 7)
        assert said["gen_ai.usage.cache_read.input_tokens"] == 16
        assert said["shoal.replica"] == attempt.attributes["shoal.replica"] == replica.url
        assert 0 < said["gen_ai.response.time_to_first_chunk"] < 1

    run(scenario())


def test_each_attempt_is_a_span_and_the_failed_one_says_why(run: Run) -> None:
    async def scenario() -> None:
        with collecting() as collector:
            await traced(collector, Replica(script=dies), Replica(script=dies), requests=[post()])
        server = collector.named("POST /v1/chat/completions")
        attempts = [span for span in collector.spans if span.name == "attempt"]
        assert len(attempts) == 2
        assert {span.parent_id for span in attempts} == {server.span_id}
        assert all(span.error and span.attributes["error.type"] for span in attempts)
        assert (server.error, server.attributes["error.type"]) == ("status 500", "500"), "quarantined"

    run(scenario())


def test_what_the_caller_does_not_sample_is_sent_on_and_not_told(run: Run) -> None:
    async def scenario() -> None:
        replica = Replica()
        requests = [post(headers=f"Traceparent: {UNSAMPLED}\r\n"), post(), post(headers="Traceparent: x\r\n")]
        with collecting() as collector:
            assert await traced(collector, replica, requests=requests, ratio=0.0) == []
        continued, *begun = [received.headers["traceparent"] for received in replica.requests]
        assert continued.split("-")[1] == UNSAMPLED.split("-")[1]
        assert all(header.endswith("-00") and "x" not in header for header in (continued, *begun))

    run(scenario())


def test_probes_and_scrapes_are_no_traces_and_refusals_are(run: Run) -> None:
    async def scenario() -> None:
        requests = [get("/health"), get("/metrics"), get("/v1/models"), post(body={"model": "nope"})]
        with collecting() as collector:
            await traced(collector, Replica(), requests=requests)
        (refused,) = collector.spans
        assert refused.attributes["http.response.status_code"] == 404

    run(scenario())


def test_without_tracing_the_clients_own_header_goes_through(run: Run) -> None:
    async def scenario() -> None:
        replica = Replica()
        async with rig(replica) as r:
            await r.ask(post(headers=f"Traceparent: {TRACEPARENT}\r\n"))
            await r.ask(post(headers=f"Traceparent: {TRACEPARENT}\r\nTraceparent: {UNSAMPLED}\r\n"))
            await r.ask(post())
        kept, twice, none = replica.requests
        assert kept.headers["traceparent"] == TRACEPARENT
        assert "traceparent" not in twice.headers, "two of them are none"
        assert "traceparent" not in none.headers

    run(scenario())


def test_a_collector_that_is_away_costs_no_request(run: Run) -> None:
    async def scenario() -> None:
        with collecting() as collector:
            sender = SpanSender.to(collector.url, "shoal-router", 1.0)
        async with rig(Replica(), sender=sender) as r:
            for _ in range(20):
                assert (await r.ask(post())).status == 200

    run(scenario())


def test_a_stream_that_goes_on_elsewhere_is_one_request_with_a_resume(run: Run) -> None:
    async def scenario() -> None:
        lines, engine = Lines(), Engine(STEPS)
        engine.deaths = [boundary(STEPS, 3)]
        with collecting() as collector:
            sender = SpanSender.to(collector.url, "shoal-router", 1.0)
            async with rig(*fleet(engine), settings=LOGGED, access_log_stream=lines, sender=sender) as r:
                client, _ = await begun(r)
                assert await whole_stream(client) == WHOLE
                client.close()
            await asyncio.to_thread(sender.close)
        (entry,) = lines.entries
        assert (entry["status"], entry["retries"], entry["resumes"]) == (200, 0, 1)
        first, second = collector.named("attempt"), collector.named("resume")
        assert first.parent_id == second.parent_id == collector.named("POST /v1/chat/completions").span_id
        assert (first.attributes["error.type"], second.error) == ("lost", "")
        assert entry["replica"] == second.attributes["shoal.replica"] != first.attributes["shoal.replica"]
        assert entry["trace_id"] == first.trace_id

    run(scenario())
