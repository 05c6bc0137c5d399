"""Two clients that write the same messages differently share a chain."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_api.request_prefix import BLOCK_BYTES
from shoal_router.canonical import canonical
from shoal_router.fields import read_fields
from shoal_router.prompt import Work, read_prompt

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
MESSAGES = st.lists(
    st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["system", "user"]), TEXT),
    min_size=1,
    max_size=4,
)


def usual(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


@settings(deadline=None)
@given(MESSAGES)
def test_blanks_and_the_escapes_of_clients_that_write_blanks_make_no_difference(messages: list[Any]) -> None:
    once = canonical(usual(messages))
    assert once == usual(messages)
    assert canonical(json.dumps(messages).encode()) == once
    assert canonical(json.dumps(messages, indent=2).encode()) == once


@settings(deadline=None)
@given(MESSAGES)
def test_order_of_a_messages_fields_makes_no_difference(messages: list[Any]) -> None:
    turned = [dict(reversed(list(each.items()))) for each in messages]
    assert canonical(usual(turned)) == usual(messages)


def requests(value: Any) -> bytes:
    return json.dumps(value).encode()


def by_hand(value: Any) -> bytes:
    return json.dumps(value, indent=4, ensure_ascii=False).encode()


def test_chain_is_the_same_whatever_library_wrote_the_body() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    messages = [{"role": "system", "content": "Größe 日本 " * 200}, {"role": "user", "content": "a\nb"}]
    body = {"model": "m", "messages": messages, "tools": tools}
    prompts = [
        read_prompt(read_fields(write(body)), "m", Work.GENERATE) for write in (usual, requests, by_hand)
    ]
    assert len(prompts[0].chain) > 5
    assert all(each.chain == prompts[0].chain for each in prompts)
    assert {each.content_bytes // BLOCK_BYTES for each in prompts} == {len(prompts[0].chain)}


@pytest.mark.parametrize(
    "odd",
    [b"", b'"text"', b'[ "text" ]', b"[ {} ]", b'[ {"content" : 1} ]', b"{ }", b"[ " + b" " * 300_000 + b"]"],
)
def test_what_are_no_messages_is_left_for_the_engine_to_judge(odd: bytes) -> None:
    assert canonical(odd) in (odd, odd.replace(b" ", b""))
