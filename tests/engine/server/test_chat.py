from __future__ import annotations

from typing import Any

import httpx

from tests.engine.server.running import MODEL, Running, events, model_text

USER = [{"role": "user", "content": "Say something."}]


def chat(server: Running, **body: Any) -> httpx.Response:
    return server.post("/v1/chat/completions", messages=USER, **body)


def chat_ids() -> list[int]:
    text = model_text()
    rendered = text.template.render(USER, add_generation_prompt=True)
    return text.tokenizer.encode(rendered, add_special_tokens=False)


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


def test_a_conversations_tokens_can_be_seen(server: Running) -> None:
    assert server.post("/tokenize", messages=USER).json()["tokens"] == chat_ids()
    assert len(chat(server, max_tokens=1, prompt_logprobs=0).json()["prompt_logprobs"]) == len(chat_ids())


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
