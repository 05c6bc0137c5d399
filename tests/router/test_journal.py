"""What is told of a request when it is over: the access log's line, and spans as a collector reads them."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from typing import Any

from shoal_api.spans import SpanSender
from shoal_router.access_log import AccessLog
from shoal_router.settings import RouterSettings
from tests.collector import Collected, Collector, collecting
from tests.router.conftest import Run
from tests.router.resumable_engine import Engine, boundary
from tests.router.resumed import STEPS, WHOLE, begun, fleet, whole_stream
from tests.router.scripted import (
    FAST,
    LAST_CHUNK,
    STREAM_HEAD,
    Received,
    Replica,
    chat,
    chunk,
    get,
    post,
    reply,
    rig,
    until,
)

USAGE = b'{"usage":{"prompt_tokens":30,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":16}}}'
LOGGED = replace(FAST, access_log=True)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = TRACEPARENT[:-1] + "0"


async def counted(request: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(reply(USAGE))


async def streamed(request: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + chunk(b"data: {}\n\n"))
    await asyncio.sleep(0.02)
    writer.write(chunk(b"data: %b\n\ndata: [DONE]\n\n" % USAGE) + LAST_CHUNK)


async def dies(request: Received, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


class Lines(io.BytesIO):
    """What an access log wrote, also after it was closed."""

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


def test_access_log_has_a_line_per_request_that_says_what_became_of_it(run: Run) -> None:
    async def scenario() -> None:
        lines, replica = Lines(), Replica(script=streamed)
        async with rig(replica, settings=LOGGED, access_log_stream=lines) as r:
            await r.ask(
                post(headers="X-Request-Id: first\r\nConnection: close\r\n", body=chat("hi", stream=True))
            )
            replica.script = counted
            await r.ask(post())
            await r.ask(post(body={"model": "nope"}))
            await r.ask(get("/health"))
            await r.ask(get("/nowhere?secret=1"))
            await r.ask(b"nonsense\r\n\r\n")
        first, second, unknown, health, nowhere, broken = lines.entries
        assert (first["request_id"], first["method"], first["path"]) == (
            "first",
            "POST",
            "/v1/chat/completions",
        )
        assert (first["model"], first["replica"], first["status"]) == ("m", replica.url, 200)
        assert (first["prompt_tokens"], first["cached_tokens"], first["completion_tokens"]) == (30, 16, 7)
        assert (first["stream"], first["retries"], first["resumes"]) == (True, 0, 0)
        assert first["duration_s"] >= 0.02 > first["first_byte_s"] > 0
        assert (second["stream"], second["prompt_tokens"]) == (False, 30)
        assert (unknown["status"], unknown["replica"], unknown["first_byte_s"]) == (404, "", None)
        assert (health["path"], health["status"]) == ("/health", 200)
        assert (nowhere["path"], nowhere["status"]) == ("/nowhere", 404), (
            "what stands in a query may be a secret"
        )
        assert (broken["method"], broken["status"]) == ("", 400)

    run(scenario())


def test_access_log_tells_of_retries(run: Run) -> None:
    async def scenario() -> None:
        lines, replicas = Lines(), (Replica(script=dies), Replica(script=dies))
        async with rig(*replicas, settings=LOGGED, access_log_stream=lines) as r:
            assert (await r.ask(post())).status == 500
        (failed,) = lines.entries
        assert (failed["status"], failed["retries"]) == (500, 1), "quarantined"

    run(scenario())


def test_access_log_tells_of_clients_that_left(run: Run) -> None:
    async def scenario() -> None:
        lines = Lines()
        async with rig(Replica(script=streamed), settings=LOGGED, access_log_stream=lines) as r:
            client = await r.connect()
            client.writer.write(post(body=chat("hi", stream=True)))
            await client.head()
            client.reset()
            await until(r.idle)
        (left,) = lines.entries
        assert (left["status"], left["retries"]) == (499, 0)

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


def test_access_log_is_turned_on_and_off_while_requests_run(run: Run) -> None:
    async def scenario() -> None:
        lines = Lines()
        async with rig(Replica(), access_log_stream=lines) as r:
            await r.ask(post(headers="X-Request-Id: off\r\n"))
            assert not r.router.access_log
            r.router.set_access_log(True)
            await r.ask(post(headers="X-Request-Id: on\r\n"))
            r.router.set_access_log(False)
            await r.ask(post(headers="X-Request-Id: off\r\n"))
        assert [entry["request_id"] for entry in lines.entries] == ["on"]

    run(scenario())


def test_access_log_whose_reader_is_gone_harms_nobody(run: Run) -> None:
    async def scenario() -> None:
        lines = Lines()
        async with rig(Replica(), settings=LOGGED, access_log_stream=lines) as r:
            lines.close()
            for _ in range(3):
                assert (await r.ask(post())).status == 200

    run(scenario())


def test_access_log_drops_lines_rather_than_wait() -> None:
    class Stuck(io.BytesIO):
        def write(self, data: object) -> int:
            gate.acquire()
            return 0

    import threading

    from shoal_router import access_log
    from shoal_router.journal import Journal

    gate = threading.Semaphore(0)
    log = AccessLog(Stuck())
    journal = Journal(log, None, lambda: 0.0)
    for _ in range(access_log.MOST_QUEUED + 10):
        journal.own_reply(None, 400)
    assert log.dropped in (9, 10)
    for _ in range(access_log.MOST_QUEUED + 10):
        gate.release()
    log.close()


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


def test_settings_of_a_quiet_router_have_no_journal() -> None:
    assert RouterSettings().access_log is False
