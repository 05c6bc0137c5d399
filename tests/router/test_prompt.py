"""What the router reads in a body, and which prompts it takes for beginning alike."""

from __future__ import annotations

import json
from itertools import takewhile
from typing import Any

import pytest

from shoal_api.request_prefix import BLOCK_BYTES
from shoal_router.errors import BadRequest
from shoal_router.fields import read_fields
from shoal_router.prompt import MAX_HASHED_BYTES, Prompt, Work, read_prompt


def prompt(work: Work = Work.GENERATE, model: str = "m", **body: Any) -> Prompt:
    return read_prompt(read_fields(json.dumps(body).encode()), model, work)


def shared(a: Prompt, b: Prompt) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a.chain, b.chain, strict=False)))


TURN = [{"role": "system", "content": "s" * 1000}, {"role": "user", "content": "u" * 1000}]
NEXT_TURN = [*TURN, {"role": "assistant", "content": "a" * 1000}, {"role": "user", "content": "v"}]


def test_next_turn_of_a_conversation_shares_all_full_blocks_of_the_last() -> None:
    first, second = prompt(messages=TURN), prompt(messages=NEXT_TURN)
    assert len(first.chain) == first.content_bytes // BLOCK_BYTES
    assert shared(first, second) >= len(first.chain) - 1, "the block with the closing bracket differs"


def test_fields_beside_the_prompt_do_not_change_its_chain() -> None:
    assert prompt(messages=TURN, temperature=0.5, stream=True).chain == prompt(seed=1, messages=TURN).chain


@pytest.mark.parametrize(
    "other",
    [
        prompt(messages=TURN, model="lora"),
        prompt(messages=TURN, cache_salt="tenant"),
        prompt(messages=TURN, tools=[{"type": "function"}]),
        prompt(messages=TURN[::-1]),
    ],
)
def test_other_model_salt_tools_or_beginning_shares_nothing(other: Prompt) -> None:
    assert shared(prompt(messages=TURN), other) == 0


def test_long_tools_are_shared_before_different_messages() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "d" * 2000}}]
    assert shared(prompt(messages=TURN, tools=tools), prompt(messages=TURN[1:], tools=tools)) >= 7


@pytest.mark.parametrize("text", ["x" * 5000, ["x" * 5000], list(range(2000))])
def test_completion_prompts_of_every_kind_have_a_chain(text: Any) -> None:
    assert len(prompt(prompt=text).chain) >= 5000 // BLOCK_BYTES


def test_only_the_beginning_of_a_huge_prompt_is_hashed() -> None:
    huge = prompt(prompt="x" * 2_000_000)
    assert len(huge.chain) == MAX_HASHED_BYTES // BLOCK_BYTES
    assert huge.content_bytes == 2_000_002


@pytest.mark.parametrize(("work", "size"), [(Work.EMBED, 5002), (Work.TOKENIZE, 0)])
def test_paths_without_a_prefix_cache_have_no_chain(work: Work, size: int) -> None:
    made = prompt(work, input="x" * 5000, prompt="y" * 5000)
    assert (made.chain, made.content_bytes) == ([], size)


@pytest.mark.parametrize(("value", "streams"), [(True, True), (False, False), (None, False), ("true", False)])
def test_only_a_true_stream_streams(value: Any, streams: bool) -> None:
    assert prompt(stream=value).stream is streams


BROKEN = {
    "empty": (b"", "invalid_json"),
    "cut": (b'{"model": "m", "messages": [', "invalid_json"),
    "list": (b"[]", "invalid_value"),
    "text": (b"hello", "invalid_json"),
    "two values": (b"{}{}", "invalid_json"),
    "model is a number": (b'{"model": 5}', "invalid_value"),
    "deep": (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
    "deep and skipped": (b'{"x": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", "invalid_json"),
    "not UTF-8": (b'{"model": "\xff"}', "invalid_json"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_body_is_a_bad_request_with_a_code(name: str) -> None:
    body, code = BROKEN[name]
    with pytest.raises(BadRequest) as caught:
        read_fields(body)
    assert caught.value.code == code
