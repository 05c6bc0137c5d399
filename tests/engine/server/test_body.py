from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable

import pytest

from shoal_engine.errors import InvalidRequest
from shoal_engine.server.body import parse_body
from shoal_engine.server.limits import Limits
from shoal_engine.server.protocol import ChatBody, CompletionBody

LIMITS = Limits(json_depth=8, json_containers=100, json_strings=50)
USER = '{"role":"user","content":"hi"}'


@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        ("", "invalid_json", None),
        ("{", "invalid_json", None),
        ("[]", "invalid_value", None),
        ("null", "invalid_value", None),
        ('"x"', "invalid_value", None),
        ('{"prompt": "\\ud800"}', "invalid_json", None),
        ('{"prompt": "a", "n": }', "invalid_json", None),
        ("{}", "invalid_value", "prompt"),
        ('{"prompt": 5}', "invalid_value", "prompt"),
        ('{"prompt": {"a": 1}}', "invalid_value", "prompt"),
        ('{"prompt": [1, "a"]}', "invalid_value", "prompt[1]"),
        ('{"prompt": ["a", 1]}', "invalid_value", "prompt[1]"),
        ('{"prompt": [[1], "a"]}', "invalid_value", "prompt[1]"),
        ('{"prompt": [[1, "a"]]}', "invalid_value", "prompt[0][1]"),
        ('{"prompt": [1.5]}', "invalid_value", "prompt[0]"),
        ('{"prompt": "a", "n": "2"}', "invalid_value", "n"),
        ('{"prompt": "a", "n": true}', "invalid_value", "n"),
        ('{"prompt": "a", "stream": 1}', "invalid_value", "stream"),
        ('{"prompt": "a", "stop": [1]}', "invalid_value", "stop"),
        ('{"prompt": "a", "logit_bias": {"1": "x"}}', "invalid_value", "logit_bias"),
        (
            '{"prompt": "a", "logit_bias": {"' + "b" * 900 + '": "x"}}',
            "invalid_value",
            ("logit_bias." + "b" * 900)[:200],
        ),
        (
            '{"prompt": "a", "stream_options": {"include_usage": 5}}',
            "invalid_value",
            "stream_options.include_usage",
        ),
        ('{"prompt": "a", "x": ' + "[" * 9 + "]" * 9 + "}", "body_too_deep", None),
        ('{"prompt": "a", "x": [' + "[]," * 100 + "[]]}", "body_too_complex", None),
        ('{"prompt": "a", "x": [' + '"",' * 60 + '""]}', "body_too_complex", None),
        ("[" * 100_000, "body_too_complex", None),
    ],
)
def test_a_completion_body_that_is_wrong_is_refused_and_its_field_named(
    data: str, code: str, param: str | None
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_body(data.encode(), CompletionBody, LIMITS)
    assert (caught.value.code, caught.value.status) == (code, 400)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ("{}", "messages"),
        ('{"messages": []}', "messages"),
        ('{"messages": "hi"}', "messages"),
        ('{"messages": [5]}', "messages[0]"),
        ('{"messages": [{"content": "x"}]}', "messages[0].role"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "messages[0].role"),
        ('{"messages": [{"role": "user", "content": 5}]}', "messages[0].content"),
        (
            '{"messages": [' + USER + ', {"role": "user", "content": [{"text": "x"}]}]}',
            "messages[1].content[0].type",
        ),
        (
            '{"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}',
            "messages[0].content[0].text",
        ),
        ('{"messages": [' + USER + '], "logprobs": 5}', "logprobs"),
    ],
)
def test_a_chat_body_that_is_wrong_is_refused_and_its_field_named(data: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_body(data.encode(), ChatBody, LIMITS)
    assert caught.value.param == param


def test_an_error_does_not_repeat_what_the_client_sent() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_body(b'{"prompt": "a", "temperature": "hunter2"}', CompletionBody, LIMITS)
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    "prompt", ['"text"', '["a", "b"]', "[1, 2]", "[[1, 2], [3]]", '"{[[[[[[[[[["', '"\\"[[[[[[[[[[\\\\"']
)
def test_prompts_come_in_four_forms_and_brackets_in_text_are_text(prompt: str) -> None:
    body = parse_body(b'{"prompt": %s, "unknown": {"field": [1]}}' % prompt.encode(), CompletionBody, LIMITS)
    assert body.prompt


@pytest.mark.parametrize(
    "data",
    [
        b'{"x":' + b"[],"[:2] * 4_000_000,
        b'{"prompt":[' + b'"",' * 2_700_000 + b"1]}",
        b'{"prompt":"' + b'{\\"a\\":1}' * 900_000 + b'"}',
        b'{"prompt":[[' + b"1," * 4_000_000 + b'"a"]]}',
        b'{"prompt":[' + b"[]," * 2_700_000 + b"1]}",
        b'{"prompt":"' + b"\\" * 8_000_000,
        b'{"prompt":[1,' + b"true," * 1_600_000 + b"1]}",
        b'{"prompt":[[1,' + b"null," * 1_600_000 + b"1]]}",
        b'{"prompt":["",' + b"1," * 4_000_000 + b"1]}",
        b'{"prompt":"a","stop":[' + b"1," * 4_000_000 + b"1]}",
        b'{"prompt":"a","logit_bias":{' + b'"":"",' * 190_000 + b'"":""}}',
        b'{"prompt":"a","logit_bias":{"' + b"b" * 8_000_000 + b'":""}}',
    ],
    ids=lambda data: data[:24].decode(),
)
def test_the_largest_body_is_judged_quickly_whatever_it_holds(data: bytes) -> None:
    def judge() -> None:
        with contextlib.suppress(InvalidRequest):
            parse_body(data, CompletionBody, Limits())
        with contextlib.suppress(InvalidRequest):
            parse_body(data.replace(b"prompt", b"messages"), ChatBody, Limits())

    # A second, or five readings of so many numbers where the machine is slow; quadratic would be minutes.
    reading_s = cpu_time_s(lambda: json.loads(b"[" + b"1," * 4_000_000 + b"1]"))
    assert cpu_time_s(judge) < max(1.0, 5 * reading_s)


def cpu_time_s(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
