"""A stream that is cut after any of its events and continued on another replica reads as one that never was."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.server.in_process import replica
from tests.engine.server.streams import (
    ALLOWED,
    CHAT,
    COMPLETIONS,
    DRAWN,
    RESUMABLE,
    STATE,
    Stream,
    asked,
    content_of,
    envelope,
    rest_of,
    undisturbed,
)

pytestmark = pytest.mark.usefixtures("closed_prompts")
EOS = 2
STOPPED = ("ends by itself", "at least some", "stop token", "stop token told")
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy with penalties": {
        "temperature": 0.0,
        "allowed_token_ids": ALLOWED,
        "repetition_penalty": 1.4,
        "presence_penalty": 0.7,
        "frequency_penalty": 0.3,
    },
    "whole vocabulary": {"seed": 5, "temperature": 1.0},
    "truncated": {"seed": 3, "temperature": 0.9, "top_p": 0.8, "top_k": 500, "min_p": 0.001},
    "split characters": {**DRAWN, "max_tokens": 24},
    "biased": {**DRAWN, "logit_bias": {str(ALLOWED[3]): 4.0, str(ALLOWED[8]): -100.0}},
    "ends by itself": {
        **DRAWN,
        "seed": 12,
        "allowed_token_ids": [*ALLOWED, EOS],
        "logit_bias": {"2": 1.8},
        "max_tokens": 60,
    },
    "at least some": {
        **DRAWN,
        "allowed_token_ids": [*ALLOWED, EOS],
        "logit_bias": {"2": 4.0},
        "min_tokens": 9,
        "max_tokens": 30,
    },
    "never ends by itself": {
        **DRAWN,
        "allowed_token_ids": [*ALLOWED, EOS],
        "logit_bias": {"2": 2.0},
        "ignore_eos": True,
    },
    "stop token": {**DRAWN, "stop_token_ids": ALLOWED[5:7], "max_tokens": 60},
    "stop token told": {
        **DRAWN,
        "stop_token_ids": ALLOWED[5:7],
        "include_stop_str_in_output": True,
        "max_tokens": 60,
    },
    "no seed": {"temperature": 1.2},
    "ids told": {**DRAWN, "return_token_ids": True, "skip_special_tokens": False},
    "usage in each": {**DRAWN, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "no usage": {**DRAWN, "stream_options": None},
    "one token": {**DRAWN, "max_tokens": 1},
}


async def check_every_cut(*asks: tuple[str, dict[str, Any]]) -> list[Stream]:
    """Cut after each event, nothing and everything included, continue all of them at once elsewhere."""
    async with replica(0) as first, replica(1) as second:
        wholes = [await undisturbed(first, path, body) for path, body in asks]
        cuts = [(i, cut) for i, whole in enumerate(wholes) for cut in range(len(whole.events) + 1)]
        rests = await asyncio.gather(*(rest_of(wholes[i], second, *asks[i], cut) for i, cut in cuts))
        for (i, cut), rest in zip(cuts, rests, strict=True):
            assert wholes[i].events[:cut] + rest.events == wholes[i].events, (asks[i], cut)
            assert rest.state == wholes[i].state
        return wholes


@pytest.mark.parametrize("case", CASES)
async def test_every_cut_reads_as_none(case: str) -> None:
    asks = [(path, asked(path, CASES[case])) for path in (CHAT, COMPLETIONS)]
    for whole in await check_every_cut(*asks):
        assert content_of(whole.data)["ends"][-2][0] == ("stop" if case in STOPPED else "length")
        assert whole.events[-1].stage == "done"
        assert len(whole.events) > 4 or case == "one token"


@pytest.mark.parametrize("top", [0, 3])
async def test_log_probabilities_and_their_offsets_go_on(top: int) -> None:
    chat = asked(CHAT, {**DRAWN, "logprobs": True, "top_logprobs": top})
    completion = asked(COMPLETIONS, {**DRAWN, "logprobs": top})
    for whole in await check_every_cut((CHAT, chat), (COMPLETIONS, completion)):
        entries = content_of(whole.data)["logprobs"]
        assert len(entries.get("content", entries.get("tokens"))) == 12


@pytest.mark.parametrize("include", [False, True])
async def test_a_stop_string_may_straddle_the_cut(include: bool) -> None:
    """Strings out of a text, of one token or several: with log probabilities, events fall into them."""
    body = asked(COMPLETIONS, {**DRAWN, "max_tokens": 20, "logprobs": 0, "min_tokens": 3})
    async with replica(0) as one:
        text = content_of((await undisturbed(one, COMPLETIONS, body)).data)["text"]
    stops = sorted({text[at : at + size] for size in (3, 9) for at in range(4, len(text) - size, 5)})
    asks = [
        (COMPLETIONS, {**body, "stop": [stop, "nowhere"], "include_stop_str_in_output": include})
        for stop in stops[:4]
    ]
    reasons = [content_of(whole.data)["ends"][-2] for whole in await check_every_cut(*asks)]
    assert reasons == [["stop", stop] for stop in stops[:4]]


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6), path=st.sampled_from([CHAT, COMPLETIONS]))
async def test_however_tokens_melt_into_events_and_however_often_it_is_cut(seed: int, path: str) -> None:
    chance = random.Random(seed)
    fields = {**DRAWN, "seed": seed, "max_tokens": 16, "stop": ["STOP", "日本"], "return_token_ids": True}
    fields["logprobs"] = path == CHAT or None
    body = asked(path, fields)
    async with replica(0) as first, replica(1, (chance.randint(1, 5) for _ in itertools.count())) as other:
        whole = await undisturbed(first, path, body)
        part, seen, cuts = await undisturbed(other, path, body), Stream(whole.state, []), 0
        while True:
            count = chance.randint(1, 4) if cuts < 4 else len(part.events)
            seen = Stream(part.state, [*seen.events, *part.events[:count]])
            if seen.events[-1].stage == "done":
                break
            cuts += 1
            part = await rest_of(seen, other, path, body, len(seen.events))
        assert seen.ids(len(seen.events)) == whole.ids(len(whole.events))
        got, wanted = content_of(seen.data), content_of(whole.data)
        del got["head"][:2], wanted["head"][:2]  # they are two streams: id and second differ
        got["usage"].pop("prompt_tokens_details"), wanted["usage"].pop("prompt_tokens_details")
        assert got == wanted


async def test_without_the_header_a_stream_is_the_same_without_its_lines() -> None:
    async with replica(0) as one:
        for path in (CHAT, COMPLETIONS):
            body = asked(path, {**DRAWN, "request_id": "same"})
            plain = await one.post(path, body)
            assert STATE not in plain.headers
            assert b":shoal" not in plain.content
            told = await undisturbed(one, path, body)
            lines = b"".join(b"data: " + data + b"\n\n" for data in told.data)
            assert _timeless(plain.content) == _timeless(lines)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"n": 2}),
        (COMPLETIONS, {"prompt": ["a", "b"]}),
        (COMPLETIONS, {"echo": True}),
        (COMPLETIONS, {"stream": False, "stream_options": None}),
    ],
)
async def test_what_cannot_be_continued_does_not_say_that_it_can(path: str, fields: dict[str, Any]) -> None:
    async with replica(0) as one:
        body = asked(path, {"temperature": 0.0, **fields})
        reply = await one.post(path, body, **RESUMABLE)
        assert reply.status_code == 200
        assert STATE not in reply.headers
        assert b":shoal" not in reply.content
        whole = await undisturbed(one, COMPLETIONS, asked(COMPLETIONS, {"temperature": 0.0}))
        refused = await one.post(path, envelope(body, "tokens", [5]), **{STATE: whole.state})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "request")


def _timeless(content: bytes) -> bytes:
    return re.sub(rb'"created":\d+', b"", content)
