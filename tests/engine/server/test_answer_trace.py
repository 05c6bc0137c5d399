"""The spans of an answer as a collector reads them: what the engine did when, below the caller's own span."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from shoal_api.spans import SpanSender
from tests.collector import Collected, Collector, collecting
from tests.engine.server.running import Running, serving
from tests.engine.server.scripted_engine import DIE, Script
from tests.router.scripted import Replica, chat, post, rig

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SCRIPT = Script(step_s=0.005)


def traced(ask: Callable[[Running], None], ratio: float = 1.0) -> Collector:
    """What a collector got of the requests that `ask` sends."""
    with collecting() as collector:
        sender = SpanSender.to(collector.url, "shoal-engine", ratio)
        with serving(SCRIPT, sender=sender) as server:
            ask(server)
        sender.close()
    return collector


def named(collector: Collector, name: str, count: int = 1) -> list[Collected]:
    found = [span for span in collector.spans if span.name == name]
    assert len(found) == count, [span.name for span in collector.spans]
    return found


def test_an_answer_has_its_queue_prefill_and_decode_below_it() -> None:
    body = {"prompt": [40, 41, 42], "max_tokens": 4, "model": "scripted"}
    headers = {"traceparent": TRACEPARENT, "x-request-id": "r-1"}
    collector = traced(lambda server: server.http.post("/v1/completions", json=body, headers=headers))
    (server,) = named(collector, "POST /v1/completions")
    phases = [named(collector, name)[0] for name in ("queue", "prefill", "decode")]
    assert (server.trace_id, server.parent_id) == tuple(TRACEPARENT.split("-")[1:3])
    assert all((span.trace_id, span.parent_id) == (server.trace_id, server.span_id) for span in phases)
    moments = [server.start_ns, *(moment for span in phases for moment in (span.start_ns, span.end_ns))]
    assert moments == sorted(moments), "one after another, within the whole"
    assert moments[-1] <= server.end_ns
    assert phases[2].end_ns - phases[2].start_ns > 3 * 4_000_000, "three steps of 5 ms"
    said = server.attributes
    assert (said["http.response.status_code"], said["shoal.request_id"]) == (200, "r-1")
    assert (said["gen_ai.request.model"], said["gen_ai.operation.name"]) == ("scripted", "text_completion")
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (3, 4)
    assert server.service == "shoal-engine"


def test_each_choice_has_phases_of_its_own() -> None:
    collector = traced(lambda server: server.complete(n=2, max_tokens=2))
    assert {span.attributes["shoal.choice"] for span in named(collector, "decode", 2)} == {0, 1}


@pytest.mark.parametrize("header", [TRACEPARENT[:-1] + "0", ""])
def test_what_is_not_sampled_is_not_told(header: str) -> None:
    def ask(server: Running) -> None:
        headers = {"traceparent": header} if header else {}
        server.http.post("/v1/completions", json={"prompt": [1], "max_tokens": 1}, headers=headers)

    assert traced(ask, ratio=0.0).spans == []


def test_an_answer_that_failed_says_so() -> None:
    collector = traced(lambda server: server.complete(prompt=(DIE,)))
    (server,) = named(collector, "POST /v1/completions")
    assert server.error
    assert server.attributes["error.type"] == str(server.attributes["http.response.status_code"])


def test_router_and_engine_tell_one_trace() -> None:
    async def through_a_router(server: Running, sender: SpanSender) -> None:
        engine = Replica(port=int(server.url.rsplit(":", 1)[1]))

        async def runs_already() -> None: ...

        engine.start = engine.kill = runs_already  # type: ignore[method-assign]
        async with rig(engine, sender=sender) as r:
            answer = await r.ask(post(body=chat("hi", max_tokens=2) | {"model": "scripted"}))
            assert answer.status == 200

    with collecting() as collector:
        ours, theirs = (SpanSender.to(collector.url, name, 1.0) for name in ("shoal-router", "shoal-engine"))
        with serving(SCRIPT, sender=theirs) as server:
            asyncio.run(through_a_router(server, ours))
        ours.close()
        theirs.close()
    by_service = {span.service: span for span in named(collector, "POST /v1/chat/completions", 2)}
    (attempt,) = named(collector, "attempt")
    router, engine = by_service["shoal-router"], by_service["shoal-engine"]
    assert attempt.parent_id == router.span_id
    assert engine.parent_id == attempt.span_id
    assert len({span.trace_id for span in collector.spans}) == 1
    assert len(collector.spans) == 6
    assert router.start_ns <= engine.start_ns
