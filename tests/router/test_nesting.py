"""How deep a JSON text nests, against a walk over what it means."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal_router.errors import BadRequest
from shoal_router.fields import read_fields
from shoal_router.nesting import MOST_LEVELS, too_deep

# Strings that look like brackets, quotes and escapes are where a count goes wrong.
STRINGS = st.text(st.sampled_from('[]{}"\\\\nx\n\u00e9'), max_size=12)
VALUES = st.recursive(
    STRINGS | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=30,
)


def levels(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(levels, inner), default=0)


def nested(value: Any, by: int) -> Any:
    for number in range(by):
        value = [value, "]"] if number % 2 else {"[": value}
    return value


@given(VALUES, st.integers(25, 36))
@example("x", MOST_LEVELS)
@example("x", MOST_LEVELS + 1)
def test_depth_is_that_of_the_value_whatever_its_strings_hold(value: Any, by: int) -> None:
    value = nested(value, by)
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert too_deep(text.encode()) == (levels(value) > MOST_LEVELS)


@pytest.mark.parametrize("depth", [MOST_LEVELS, 100_000])
def test_a_body_that_nests_too_deep_is_refused_by_name(depth: int) -> None:
    with pytest.raises(BadRequest) as refused:
        read_fields(b'{"messages":%b1%b}' % (b"[" * depth, b"]" * depth))
    assert refused.value.code in ("json_too_deep", "invalid_json")
    assert read_fields(b'{"messages":%b}' % (b"[{}]" * 1)).messages


def test_a_long_conversation_is_not_deep() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "[[[{" * 40}]}] * 200
    assert read_fields(json.dumps({"messages": messages}).encode()).messages
