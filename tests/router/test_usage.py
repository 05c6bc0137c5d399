"""Usage read from the end of replies, and bytes per token."""

from __future__ import annotations

import json

import pytest

from shoal_router.usage import AnswerTokens, BytesPerToken, Usage, read_usage

USAGE = {
    "prompt_tokens": 812,
    "completion_tokens": 3,
    "total_tokens": 815,
    "prompt_tokens_details": {"cached_tokens": 800},
}


def body(**fields: object) -> bytes:
    return json.dumps({"choices": [], **fields}).encode()


CASES = {
    "whole": ([body(usage=USAGE)], Usage(812, 800, 3)),
    "without spaces": ([body(usage=USAGE).replace(b" ", b"")], Usage(812, 800, 3)),
    "no details": ([body(usage={"prompt_tokens": 5})], Usage(5, None)),
    "stream with [DONE] and last chunk apart": (
        [b"data: {}\n\n", b"data: " + body(usage=USAGE) + b"\n\n", b"data: [DONE]\n\n", b"0\r\n\r\n"],
        Usage(812, 800, 3),
    ),
    "number cut by a chunk border": ([b'{"usage": {"prompt_tokens": 81', b"\r\n4\r\n2}}\r\n"], None),
    "key cut by a chunk border": ([b'{"usage": {"prompt_tok', b'\r\n1c\r\nens": 81}}'], None),
    "usage null": ([body(usage=None)], None),
    "nothing": ([], None),
    "only as text of the answer": ([body(text='"prompt_tokens": 7, "cached_tokens": 3')], None),
}


@pytest.mark.parametrize("name", CASES)
def test_usage_is_read_from_the_last_pieces(name: str) -> None:
    pieces, usage = CASES[name]
    read = read_usage(pieces)
    assert (read and _values(read)) == (usage and _values(usage))


def _values(usage: Usage) -> tuple[int, int | None, int]:
    return usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens


def test_ratio_starts_at_four_and_moves_to_what_is_seen_without_leaving_reason() -> None:
    ratios = BytesPerToken()
    assert ratios.of("m") == 4.0
    for _ in range(200):
        ratios.learn("m", 3000, 1000)
    assert ratios.of("m") == pytest.approx(3.0, abs=0.01)
    for _ in range(500):
        ratios.learn("m", 10**9, 1)
    assert ratios.of("m") <= 64.0
    ratios.learn("m", 10, 0)
    assert ratios.of("other") == 4.0


def test_answers_are_expected_to_be_like_those_before_and_never_longer_than_asked_for() -> None:
    answers = AnswerTokens()
    assert answers.expected("m", 16) == 16
    for _ in range(200):
        answers.learn("m", 40)
    assert answers.expected("m", 0) == pytest.approx(40)
    assert answers.expected("m", 16) == 16
    assert answers.expected("other", 0) == answers.expected("yet another", 0) > 0
