"""What a request that continues a stream must bring, what it is refused for, and what is counted of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shoal_engine.server.resume import decode_state, encode_state
from tests.engine.server.in_process import replica
from tests.engine.server.running import Running
from tests.engine.server.streams import (
    CHAT,
    COMPLETIONS,
    DRAWN,
    RESUMABLE,
    STATE,
    WORDS,
    Stream,
    asked,
    content_of,
    envelope,
    rest_of,
    stream_of,
    undisturbed,
)

pytestmark = pytest.mark.usefixtures("closed_prompts")


@pytest.mark.parametrize("ended_by", ["max_tokens", "stop token", "stop string"])
async def test_tokens_that_have_ended_the_answer_need_no_engine(ended_by: str) -> None:
    body = asked(COMPLETIONS, DRAWN)
    async with replica(0) as first, replica(1) as second:
        whole = await undisturbed(first, COMPLETIONS, body)
        ids, text = whole.ids(len(whole.events)), content_of(whole.data)["text"]
        wanted: list[Any] = ["length", None]
        if ended_by == "stop token":
            ids = ids[: ids.index(ids[6]) + 1]
            body, wanted = {**body, "stop_token_ids": [ids[-1]]}, ["stop", ids[-1]]
        if ended_by == "stop string":
            body, wanted = {**body, "stop": text[-1]}, ["stop", text[-1]]
            ids = (await undisturbed(first, COMPLETIONS, body)).ids(99)
        reply = await second.post(
            COMPLETIONS, envelope(body, "tokens", ids), **RESUMABLE, **{STATE: whole.state}
        )
        assert second.pump.submitted == []
        rest = stream_of(reply)
        assert [event.stage for event in rest.events] == ["finish", "usage", "done"]
        content = content_of(rest.data)
        assert (content["text"], content["ends"]) == ("", [wanted, "done"])
        assert content["usage"]["completion_tokens"] == len(ids)
        assert rest.ids(3) == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"resume": None}, "resume"),
        ({"request": None}, "request"),
        ({"resume": {"ids": []}}, "resume.stage"),
        ({"resume": {"stage": "tokens"}}, "resume.ids"),
        ({"resume": {"stage": "middle", "ids": []}}, "resume.stage"),
        ({"resume": {"stage": "tokens", "ids": ["5"]}}, "resume.ids[0]"),
        ({"resume": {"stage": "tokens", "ids": [49_152]}}, "resume.ids"),
        ({"resume": {"stage": "tokens", "ids": [5] * 13}}, "resume.ids"),
        ({"resume": {"stage": "open", "ids": [5]}}, "resume.ids"),
        ({"resume": {"stage": "tokens", "ids": [5], "cached_tokens": "3"}}, "resume.cached_tokens"),
        ({"request": {"prompt": 7}}, "prompt"),
        ({"request": {"prompt": "hi", "stream": False}}, "request"),
    ],
)
async def test_a_wrong_envelope_is_refused_by_the_name_of_its_field(change: Any, param: str) -> None:
    body = asked(COMPLETIONS, {"temperature": 0.0})
    async with replica(0) as one:
        whole = await undisturbed(one, COMPLETIONS, body)
        good = {"resume": {"stage": "tokens", "ids": [5]}, "request": body}
        sent = {key: value for key, value in {**good, **change}.items() if value is not None}
        reply = await one.post(COMPLETIONS, sent, **{STATE: whole.state})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
        assert len(one.pump.submitted) == 1


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"resume":' + b"[" * 100_000, b'"text"'])
async def test_what_is_no_envelope_is_refused(body: bytes) -> None:
    async with replica(0) as one:
        whole = await undisturbed(one, COMPLETIONS, asked(COMPLETIONS, {"max_tokens": 1}))
        reply = await one.post(COMPLETIONS, body, **{STATE: whole.state})
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] in ("invalid_json", "body_too_deep")


@pytest.mark.parametrize("state", ["", "AAAA", "no base64", "k6FhoWKhYw"])
async def test_a_state_that_is_none_is_refused(state: str) -> None:
    async with replica(0) as one:
        body = envelope(asked(COMPLETIONS, {}), "tokens", [5])
        reply = await one.post(COMPLETIONS, body, **{STATE: state})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, STATE)


async def test_another_version_or_another_prompt_does_not_go_on_as_if_it_were_the_same() -> None:
    body = asked(COMPLETIONS, {"temperature": 0.0})
    async with replica(0) as old, replica(1, version="2") as new:
        whole = await undisturbed(old, COMPLETIONS, body)
        headers = {**RESUMABLE, STATE: whole.state}
        replies = [
            await new.post(COMPLETIONS, whole.envelope(body, 2), **headers),
            await old.post(
                COMPLETIONS, whole.envelope({**body, "prompt": WORDS.replace("der", "die")}, 2), **headers
            ),
        ]
        for reply in replies:
            assert (reply.status_code, reply.json()["error"]["code"]) == (409, "resume_mismatch")


async def test_the_cached_tokens_of_the_first_replica_are_told_and_the_metrics_know_what_it_was() -> None:
    body = asked(COMPLETIONS, {"temperature": 0.0, "prompt": WORDS * 3})
    async with replica(0) as first, replica(1) as second:
        await undisturbed(first, COMPLETIONS, body)
        whole = await undisturbed(first, COMPLETIONS, body)
        cached = content_of(whole.data)["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached > 0
        before = second.pump.engine.stats()
        for _ in "cold", "warm":
            rest = await rest_of(whole, second, COMPLETIONS, body, 5)
            assert content_of(rest.data)["usage"] == content_of(whole.data)["usage"]
        after, metrics = second.pump.engine.stats(), second.service.metrics
        assert after.prompt_tokens == before.prompt_tokens
        assert after.prefix_cache_queries == before.prefix_cache_queries
        assert after.generation_tokens - before.generation_tokens == 2 * 7
        assert metrics.resumed == 2
        assert metrics.histograms["vllm:time_to_first_token_seconds"].buckets()[-1][1] == 0
        assert metrics.histograms["vllm:inter_token_latency_seconds"].buckets()[-1][1] == 2 * 7
        assert metrics.histograms["vllm:request_generation_tokens"].total == 2 * 12


async def test_where_the_first_replica_had_not_counted_cached_tokens_the_second_does() -> None:
    """Its reply had begun with a ping."""
    body = asked(COMPLETIONS, {"temperature": 0.0, "prompt": WORDS * 3})
    async with replica(0) as one:
        whole = await undisturbed(one, COMPLETIONS, body)
        state = msgspec.structs.replace(decode_state(whole.state), cached_tokens=None)
        early = Stream(encode_state(state).decode(), whole.events)
        rest = await rest_of(early, one, COMPLETIONS, body, 5)
        usage = content_of(rest.data)["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] - 16
        assert usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_over_http_as_in_one_process(server: Running, path: str) -> None:
    """With an engine process and a socket between: each event's line and data come in one piece."""
    body = asked(path, {"max_tokens": 9, "ignore_eos": True})
    whole = stream_of(server.http.post(path, json=body, headers={"x-shoal-resumable": "1"}))
    headers = {"x-shoal-resumable": "1", STATE: whole.state, "content-type": "application/json"}
    for cut in range(1, len(whole.events) + 1):
        rest = stream_of(server.http.post(path, content=whole.envelope(body, cut), headers=headers))
        assert content_of([*whole.data[:cut], *rest.data]) == content_of(whole.data)
