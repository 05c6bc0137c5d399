from __future__ import annotations

from typing import Any

from tests.engine.server.running import Running, events, model_text, serving, until
from tests.engine.server.scripted_engine import EOS, Script


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


def test_ids_outside_the_vocabulary_are_refused_before_they_are_echoed(server: Running) -> None:
    for prompt in ([[40], [-1]], [[2**90]], [2**31]):
        for echo in (False, True):
            reply = server.post("/v1/completions", prompt=prompt, echo=echo, max_tokens=2)
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt")
