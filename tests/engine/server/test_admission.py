from __future__ import annotations

from typing import Any

import pytest

from shoal_engine.errors import ContextTooLong, InvalidRequest
from shoal_engine.messages import Ready
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.server.admission import (
    Prompt,
    fit,
    longest_prompt,
    submits_of,
    template_switches,
    truncated,
)
from shoal_engine.server.protocol import ChatBody, CompletionBody

READY = Ready(100, 10, 16, 1000, "cpu", "float32", {})


def completion(**fields: Any) -> CompletionBody:
    return CompletionBody.model_validate({"prompt": "hi", **fields})


@pytest.mark.parametrize(
    ("prompt_tokens", "asked", "settled"), [(1, None, 99), (99, None, 1), (90, 10, 10), (99, 1, 1), (5, 3, 3)]
)
def test_an_answer_gets_what_it_asks_for_or_all_the_room_there_is(
    prompt_tokens: int, asked: int | None, settled: int
) -> None:
    assert fit(prompt_tokens, SamplingParams(max_tokens=asked), 100).max_tokens == settled


@pytest.mark.parametrize(
    ("prompt_tokens", "params"),
    [
        (100, {"max_tokens": None}),
        (1000, {"max_tokens": 1}),
        (91, {"max_tokens": 10}),
        (95, {"max_tokens": None, "min_tokens": 6}),
    ],
)
def test_what_does_not_fit_the_context_is_refused_with_openais_code(prompt_tokens: int, params: Any) -> None:
    with pytest.raises(ContextTooLong) as caught:
        fit(prompt_tokens, SamplingParams(**params), 100)
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


def test_an_empty_prompt_is_no_prompt() -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        fit(0, SamplingParams(), 100)


@pytest.mark.parametrize(
    ("keep", "max_tokens", "left"), [(None, 5, 300), (50, 5, 50), (-1, 5, 95), (-1, None, 99), (500, 5, 300)]
)
def test_a_prompt_is_cut_at_its_beginning(keep: int | None, max_tokens: int | None, left: int) -> None:
    body = completion(truncate_prompt_tokens=keep)
    cut = truncated(list(range(300)), body, SamplingParams(max_tokens=max_tokens), READY)
    assert cut == list(range(300))[-left:]
    assert longest_prompt(body, READY) == (99 if keep is None else None)


def test_each_prompt_becomes_n_requests_with_seeds_of_their_own() -> None:
    body = completion(priority=-3, cache_salt="tenant-1")
    params = SamplingParams(n=3, seed=5, max_tokens=None)
    submits = submits_of(body, [Prompt([1, 2]), Prompt([3])], params, READY)
    assert [submit.prompt_token_ids for submit in submits] == [[1, 2]] * 3 + [[3]] * 3
    assert [submit.params.n for submit in submits] == [1] * 6
    seeds = [submit.params.seed for submit in submits]
    assert seeds[0] == 5  # n=1 with the same seed says the same
    assert len(set(seeds[:3])) == 3
    assert seeds[:3] == seeds[3:]
    assert {(submit.priority, submit.cache_salt) for submit in submits} == {(-3, "tenant-1")}
    assert [submit.params.max_tokens for submit in submits] == [98] * 3 + [99] * 3


@pytest.mark.parametrize(
    ("fields", "switches"),
    [
        ({}, {"add_generation_prompt": None, "continue_final_message": False}),
        (
            {"add_generation_prompt": False, "chat_template_kwargs": {"enable_thinking": False}},
            {"add_generation_prompt": False, "continue_final_message": False, "enable_thinking": False},
        ),
        (
            {"continue_final_message": True, "chat_template_kwargs": {"add_generation_prompt": True}},
            {"add_generation_prompt": None, "continue_final_message": True},
        ),
    ],
)
def test_templates_are_told_switches(fields: dict[str, Any], switches: dict[str, Any]) -> None:
    body = ChatBody.model_validate({"messages": [{"role": "user", "content": "a"}], **fields})
    assert template_switches(body) == switches


@pytest.mark.parametrize("kwargs", [{"x": "{{ secret }}"}, {"x": 1}, {"x": [True]}, {"tools": True}])
def test_templates_are_told_nothing_else(kwargs: dict[str, Any]) -> None:
    body = ChatBody.model_validate(
        {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": kwargs}
    )
    with pytest.raises(InvalidRequest) as caught:
        template_switches(body)
    assert caught.value.param == "chat_template_kwargs"
