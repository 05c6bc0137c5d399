from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.engine.server.running import MODEL, Running, events, model_text, serving, until
from tests.engine.server.scripted_engine import BAD, EOS, REFUSE, Script

USER = [{"role": "user", "content": "Say something."}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(Script(max_model_len=512)) as running:
        yield running


def chat(server: Running, **body: Any) -> httpx.Response:
    return server.post("/v1/chat/completions", messages=USER, **body)


def chat_ids() -> list[int]:
    text = model_text()
    assert text.template is not None
    rendered = text.template.render(USER, add_generation_prompt=True)
    return text.tokenizer.encode(rendered, add_special_tokens=False)


# Chat


def test_chat_answers_in_openais_shape(server: Running) -> None:
    response = chat(server, max_tokens=5)
    reply = response.json()
    assert response.status_code == 200
    assert reply["id"].startswith("chatcmpl-")
    assert (reply["object"], reply["model"]) == ("chat.completion", MODEL)
    assert reply["system_fingerprint"].startswith("fp_")
    (choice,) = reply["choices"]
    assert choice["message"]["role"] == "assistant"
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    prompt = len(chat_ids())
    assert reply["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 5,
        "total_tokens": prompt + 5,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


def test_a_chat_stream_says_the_same_and_ends_as_clients_expect(server: Running) -> None:
    body: dict[str, Any] = {
        "max_tokens": 9,
        "n": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "return_token_ids": True,
    }
    whole = chat(server, **body).json()
    response = chat(server, **body, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events(response)
    assert done == "[DONE]"
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1
    assert [each["delta"]["role"] for each in chunks[0]["choices"]] == ["assistant"] * 3
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"] == chat_ids()
    for choice in whole["choices"]:
        mine = [each for chunk in chunks for each in chunk["choices"] if each["index"] == choice["index"]]
        assert "".join(each["delta"].get("content", "") for each in mine) == choice["message"]["content"]
        assert [e for each in mine for e in (each["logprobs"] or {"content": []})["content"]] == choice[
            "logprobs"
        ]["content"]
        assert [t for each in mine for t in each.get("token_ids", [])] == choice["token_ids"]
        assert [each["finish_reason"] for each in mine if each["finish_reason"]] == [choice["finish_reason"]]


def test_usage_can_be_told_with_every_chunk(server: Running) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last, _ = events(chat(server, max_tokens=6, stream=True, stream_options=options))
    told = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert told == sorted(told)
    assert last["usage"]["completion_tokens"] == 6
    assert "usage" not in events(chat(server, max_tokens=6, stream=True))[0]


def test_chat_logprobs_have_bytes_and_nothing_json_cannot_say(server: Running) -> None:
    reply = chat(server, max_tokens=3, logprobs=True, top_logprobs=4).json()
    content = reply["choices"][0]["logprobs"]["content"]
    assert len(content) == 3
    for token, each in zip(chat_ids(), content, strict=False):
        assert bytes(each["bytes"]) == model_text().tokenizer.token_bytes(token)
        assert each["token"] == model_text().tokenizer.token_text(token)
        assert len(each["top_logprobs"]) == 4
        assert each["top_logprobs"][-1]["logprob"] == -9999.0
    none = chat(server, max_tokens=1, logprobs=True).json()
    assert none["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_content_comes_as_text_or_as_text_parts(server: Running) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Say something."}]}]
    as_parts = server.post("/v1/chat/completions", messages=parts, max_tokens=8).json()
    assert as_parts["choices"] == chat(server, max_tokens=8).json()["choices"]


def test_a_final_message_can_be_continued(server: Running) -> None:
    turns = [*USER, {"role": "assistant", "content": "I was"}]
    reply = server.post("/tokenize", messages=turns, continue_final_message=True).json()
    assert model_text().tokenizer.decode(reply["tokens"], skip_special_tokens=False).endswith("I was")
    both = server.post(
        "/v1/chat/completions", messages=turns, continue_final_message=True, add_generation_prompt=True
    )
    assert (both.status_code, both.json()["error"]["param"]) == (400, "continue_final_message")


# Completions


def test_completions_stream_what_they_say_whole(server: Running) -> None:
    body: dict[str, Any] = {
        "prompt": ["Once upon a time", "In the beginning"],
        "n": 2,
        "max_tokens": 7,
        "logprobs": 2,
    }
    for echo in (False, True):
        whole = server.post("/v1/completions", **body, echo=echo).json()
        stream = server.post("/v1/completions", **body, echo=echo, stream=True)
        *chunks, done = events(stream)
        assert done == "[DONE]"
        assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
        for choice in whole["choices"]:
            mine = [e for chunk in chunks for e in chunk["choices"] if e["index"] == choice["index"]]
            assert "".join(each["text"] for each in mine) == choice["text"]
            for field, values in choice["logprobs"].items():
                assert [value for each in mine for value in each["logprobs"][field]] == values


def test_prompts_come_in_four_forms(server: Running) -> None:
    ids = model_text().tokenizer.encode("Once upon a time")
    texts = [
        server.post("/v1/completions", prompt=prompt, max_tokens=4).json()["choices"][0]["text"]
        for prompt in ("Once upon a time", ["Once upon a time"], ids, [ids])
    ]
    assert len(set(texts)) == 1


def test_completion_logprobs_have_openais_shape(server: Running) -> None:
    reply = server.complete(max_tokens=3, logprobs=2).json()
    logprobs = reply["choices"][0]["logprobs"]
    words = [model_text().tokenizer.token_text(token) for token in (40, 41, 42)]
    assert logprobs["tokens"] == words
    assert logprobs["token_logprobs"] == [-0.5] * 3
    assert [list(top) for top in logprobs["top_logprobs"]] == [
        [model_text().tokenizer.token_text(token + i) for i in range(2)] for token in (40, 41, 42)
    ]
    assert logprobs["text_offset"] == [0, len(words[0]), len(words[0] + words[1])]
    assert (
        list(server.complete(max_tokens=1, logprobs=0).json()["choices"][0]["logprobs"]["top_logprobs"][0])
        == words[:1]
    )


def test_echo_shows_the_prompt_and_its_logprobs(server: Running) -> None:
    reply = server.complete("Once upon", max_tokens=2, echo=True, logprobs=1).json()
    (choice,) = reply["choices"]
    ids = model_text().tokenizer.encode("Once upon")
    assert choice["text"].startswith("Once upon")
    assert choice["logprobs"]["token_logprobs"] == [None] + [-0.5] * (len(ids) + 1)
    assert "prompt_logprobs" not in choice


def test_echo_alone_computes_the_prompt_and_shows_no_token(server: Running) -> None:
    reply = server.complete("Once upon", max_tokens=0, echo=True, logprobs=1).json()
    ids = model_text().tokenizer.encode("Once upon")
    assert reply["choices"][0]["text"] == "Once upon"
    assert len(reply["choices"][0]["logprobs"]["tokens"]) == len(ids)
    assert reply["usage"]["completion_tokens"] == 0
    assert server.complete("Once upon", max_tokens=0).status_code == 400


def test_prompt_logprobs_have_vllms_shape(server: Running) -> None:
    (choice,) = server.complete(max_tokens=1, prompt_logprobs=1).json()["choices"]
    text = model_text().tokenizer.token_text(41)
    assert choice["prompt_logprobs"][:2] == [
        None,
        {"41": {"logprob": -0.5, "rank": 1, "decoded_token": text}},
    ]
    assert chat(server, max_tokens=1, prompt_logprobs=0).json()["prompt_logprobs"][0] is None


def test_an_answer_too_large_to_keep_is_refused_before_it_is_computed() -> None:
    with serving(Script(), held=1000, inline_entries=50) as server:
        fits = server.complete([40] * 90, max_tokens=5, prompt_logprobs=9)
        assert len(fits.json()["choices"][0]["prompt_logprobs"]) == 90
        refused = server.complete([40] * 101, max_tokens=5, prompt_logprobs=9)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt_logprobs")
        grown = server.complete(max_tokens=300, logprobs=4)
        assert (grown.status_code, grown.json()["error"]["code"]) == (500, "answer_too_large")
        streamed = server.complete(max_tokens=300, logprobs=4, stream=True)
        assert events(streamed)[-1] == "[DONE]"
        until(lambda: server.open_requests() == 0)


def test_a_stop_string_ends_the_text_and_the_computing(server: Running) -> None:
    prompt = "alpha beta gamma delta"
    reply = server.complete(prompt, add_special_tokens=False, max_tokens=500, stop=[" gamma"]).json()
    (choice,) = reply["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (
        "alpha beta",
        "stop",
        " gamma",
    )
    assert reply["usage"]["completion_tokens"] < 10
    assert server.open_requests() == 0


def test_token_ids_can_end_it_too(server: Running) -> None:
    (choice,) = server.complete((40, 41, 42), max_tokens=50, stop_token_ids=[42]).json()["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", 42)
    assert choice["text"] == model_text().tokenizer.decode([40, 41])
    (choice,) = server.complete((40, EOS, 42), max_tokens=50).json()["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
    assert (
        server.complete((40, EOS, 42), max_tokens=5, ignore_eos=True).json()["choices"][0]["finish_reason"]
        == "length"
    )


def test_a_prompt_can_be_cut_to_its_end(server: Running) -> None:
    body: dict[str, Any] = {"max_tokens": 2, "return_token_ids": True}
    (choice,) = server.complete((40, 41, 42), truncate_prompt_tokens=2, **body).json()["choices"]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([41, 42], [41, 42])
    long = server.complete([7] * 5000, truncate_prompt_tokens=-1, **body).json()
    assert long["usage"]["prompt_tokens"] == 510
    for wrong in (0, -2):
        assert (
            server.complete(truncate_prompt_tokens=wrong).json()["error"]["param"] == "truncate_prompt_tokens"
        )


# Everything else


def test_text_becomes_tokens_and_back(server: Running) -> None:
    reply = server.post("/tokenize", prompt="Grüße 🦊", return_token_strs=True).json()
    assert reply["tokens"] == model_text().tokenizer.encode("Grüße 🦊")
    assert (reply["count"], reply["max_model_len"]) == (len(reply["tokens"]), 512)
    assert len(reply["token_strs"]) == reply["count"]
    assert server.post("/detokenize", tokens=reply["tokens"]).json() == {"prompt": "Grüße 🦊"}
    assert server.post("/tokenize", messages=USER).json()["tokens"] == chat_ids()


def test_the_model_is_listed(server: Running) -> None:
    (card,) = server.http.get("/v1/models").json()["data"]
    assert (card["id"], card["object"], card["root"], card["max_model_len"]) == (
        MODEL,
        "model",
        "/models/scripted",
        512,
    )
    assert server.http.get(f"/v1/models/{MODEL}").json() == card
    assert server.http.get("/version").json() == {"version": "1.2.3"}


def test_requests_carry_an_id(server: Running) -> None:
    named = server.http.post("/v1/completions", json={"prompt": [5]}, headers={"x-request-id": "job-7.a_b"})
    assert named.headers["x-request-id"] == "job-7.a_b"
    assert named.json()["id"] == "cmpl-job-7.a_b"
    assert server.complete(request_id="mine").json()["id"] == "cmpl-mine"
    assert server.complete().headers["x-request-id"] != server.complete().headers["x-request-id"]
    for wrong in ("a b", "http://10.0.0.1/", "x" * 129, "a;b"):
        refused = server.http.post("/v1/completions", json={"prompt": [5]}, headers={"x-request-id": wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "X-Request-Id")
        assert wrong not in refused.headers["x-request-id"]
        assert server.complete(request_id=wrong).json()["error"]["param"] == "request_id"


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/nothing", {}, 404, "not_found"),
        ("GET", "/v1/models/other", {}, 404, "model_not_found"),
        ("GET", "/v1/completions", {}, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", {}, 405, "method_not_allowed"),
        ("POST", "/v1/completions", {"content": b"{"}, 400, "invalid_json"),
        ("POST", "/v1/completions", {"json": {"prompt": "a", "model": "gpt-4"}}, 404, "model_not_found"),
        ("POST", "/tokenize", {"json": {"prompt": "a", "model": "gpt-4"}}, 404, "model_not_found"),
        ("POST", "/tokenize", {"json": {}}, 400, "invalid_value"),
        ("POST", "/detokenize", {"json": {"tokens": [10**6]}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"data": {"a": "b"}}, 415, "unsupported_media_type"),
        (
            "POST",
            "/v1/completions",
            {"json": {}, "headers": {"content-encoding": "gzip"}},
            415,
            "unsupported_media_type",
        ),
        ("POST", "/v1/completions", {"content": b" " * (8 << 20) + b"{}"}, 413, "body_too_large"),
        ("POST", "/v1/completions", {"json": {"prompt": [9] * 512}}, 400, "context_length_exceeded"),
        (
            "POST",
            "/v1/completions",
            {"json": {"prompt": [9] * 500, "max_tokens": 13}},
            400,
            "context_length_exceeded",
        ),
        ("POST", "/v1/completions", {"json": {"prompt": "word " * 600}}, 400, "context_length_exceeded"),
        ("POST", "/v1/completions", {"json": {"prompt": [5, 49_152]}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"json": {"prompt": [-1]}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"json": {"prompt": []}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"json": {"prompt": [[]]}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"json": {"prompt": ["a"] * 65}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"json": {"prompt": ["a"] * 33, "n": 4}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"json": {"prompt": "a", "suffix": "b"}}, 400, "unsupported_parameter"),
        ("POST", "/v1/completions", {"json": {"prompt": "a", "cache_salt": "a/b"}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"json": {"prompt": "a", "priority": 2**31}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"json": {"prompt": [BAD]}}, 500, "bad_numbers"),
        ("POST", "/v1/completions", {"json": {"prompt": [REFUSE]}}, 500, "internal_error"),
    ],
)
def test_every_error_has_openais_shape_and_a_code(
    server: Running, method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    if method == "POST":
        options.setdefault("headers", {}).setdefault(
            "content-type", None if "data" in options else "application/json"
        )
        options["headers"] = {key: value for key, value in options["headers"].items() if value is not None}
    response = server.http.request(method, path, **options)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    assert server.complete(max_tokens=2).status_code == 200


def test_one_request_that_fails_does_not_touch_its_neighbours(server: Running) -> None:
    alone = server.complete(max_tokens=200).json()["choices"]
    with ThreadPoolExecutor(4) as pool:
        neighbours = [pool.submit(server.complete, max_tokens=200) for _ in range(3)]
        while not all(neighbour.done() for neighbour in neighbours):
            assert server.complete([BAD]).status_code == 500
    assert [neighbour.result().json()["choices"] for neighbour in neighbours] == [alone] * 3


def test_a_bad_choice_ends_a_stream_with_its_error(server: Running) -> None:
    body = {"prompt": [[40], [BAD]], "max_tokens": 400, "stream": True}
    response = server.http.post("/v1/completions", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "bad_numbers")
    assert server.open_requests() == 0


def test_a_full_queue_is_429_with_a_time_to_come_back() -> None:
    with serving(Script(max_queued=1, max_running=1, step_s=0.002)) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.complete, max_tokens=900)
        until(lambda: server.metric("vllm:num_requests_running") == 1)
        second = pool.submit(server.complete, max_tokens=2)
        until(lambda: server.metric("vllm:num_requests_waiting") == 1)
        for stream in (False, True):
            full = server.complete(max_tokens=20, stream=stream)
            assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
            assert full.headers["retry-after"] == "7"
            assert full.headers["x-shoal-not-started"] == "true"
        assert server.metric("vllm:admission_rejections_total", reason="queue_full") == 2
        assert server.metric("vllm:request_success_total", finished_reason="error") == 2
        assert (first.result().status_code, second.result().status_code) == (200, 200)


def test_what_the_engine_would_refuse_is_refused_without_asking_it() -> None:
    with (
        serving(Script(max_requests=3, max_running=1, step_s=0.005)) as server,
        ThreadPoolExecutor(3) as pool,
    ):
        assert server.complete(max_tokens=1, n=4).status_code == 429
        running = [pool.submit(server.complete, max_tokens=60) for _ in range(3)]
        until(lambda: server.open_requests() == 3)
        full = server.complete(max_tokens=1)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert 1 <= int(full.headers["retry-after"]) <= 60
        assert full.headers["x-shoal-not-started"] == "true"
        assert {each.result().status_code for each in running} == {200}
        assert server.complete(max_tokens=1).status_code == 200


def test_metrics_follow_the_requests(server: Running) -> None:
    before = server.metric("vllm:inter_token_latency_seconds_count")
    first = server.metric("vllm:time_to_first_token_seconds_count")
    server.complete(max_tokens=10)
    assert server.metric("vllm:inter_token_latency_seconds_count") == before + 9
    assert server.metric("vllm:time_to_first_token_seconds_count") == first + 1
    assert server.metric("shoal:http_responses_total", route="/v1/completions", status="200") > 0
