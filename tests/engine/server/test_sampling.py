from __future__ import annotations

from typing import Any

import pytest

from shoal_engine.errors import EngineError, InvalidRequest
from shoal_engine.server.protocol import ChatBody, CompletionBody
from shoal_engine.server.sampling import UNSUPPORTED, check_supported, check_token_ids, sampling_params

USER = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ChatBody:
    return ChatBody.model_validate({"messages": USER, **fields})


def completion(**fields: Any) -> CompletionBody:
    return CompletionBody.model_validate({"prompt": "hi", **fields})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"bad_words": ["x"]}, "bad_words"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"echo": True}, "echo"),
    ],
)
def test_what_we_know_and_cannot_do_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_supported(chat(**fields))
    assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")
    assert "not supported yet" in caught.value.message


@pytest.mark.parametrize("fields", [{"suffix": "x"}, {"best_of": 2}])
def test_completions_refuse_suffix_and_best_of(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="not supported yet"):
        check_supported(completion(**fields))


def test_values_that_ask_for_nothing_are_welcome() -> None:
    for field, harmless in UNSUPPORTED.items():
        body = chat if field in ChatBody.model_fields else completion
        for value in harmless:
            check_supported(body(**{field: value}))
    check_supported(chat(response_format={"type": "text"}, unheard_of=5))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"49152": 1}}, "logit_bias"),
        ({"logit_bias": {"99999999999999999999": 1}}, "logit_bias"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"stop_token_ids": [10**30]}, "stop_token_ids"),
        ({"n": 0}, "n"),
        ({"n": 10**30}, "n"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"seed": 2**64}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ],
)
def test_values_out_of_range_are_refused_and_named(fields: dict[str, Any], param: str) -> None:
    def judge() -> None:
        body = chat(**fields)
        check_supported(body)
        check_token_ids(sampling_params(body, {}), 49_152)

    with pytest.raises(EngineError) as caught:
        judge()
    assert (caught.value.status, caught.value.param) == (400, param)


def test_the_models_recommendations_hold_unless_the_client_says_otherwise() -> None:
    defaults = {"temperature": 0.6, "top_k": 20}
    assert sampling_params(chat(), defaults).temperature == 0.6
    params = sampling_params(chat(temperature=0), defaults)
    assert (params.temperature, params.top_k) == (0.0, 20)


def test_each_endpoint_has_its_own_limit_and_its_own_way_to_ask_for_logprobs() -> None:
    assert sampling_params(chat(), {}).max_tokens is None
    assert sampling_params(completion(), {}).max_tokens == 16
    assert sampling_params(chat(max_tokens=5, max_completion_tokens=7), {}).max_tokens == 7
    assert sampling_params(chat(logprobs=True), {}).logprobs == 0
    assert sampling_params(chat(logprobs=True, top_logprobs=3), {}).logprobs == 3
    assert sampling_params(completion(logprobs=2), {}).prompt_logprobs is None
    assert sampling_params(completion(logprobs=2, echo=True), {}).prompt_logprobs == 2
    assert sampling_params(completion(echo=True, max_tokens=0), {}).max_tokens == 1
