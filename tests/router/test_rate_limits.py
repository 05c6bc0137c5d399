"""Limits of keys: what a bucket lets through, what a refused client is told, and that accounts come out even."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_router.errors import RateLimited
from shoal_router.gate import Gate
from shoal_router.keys import Key, Limits, digest_of
from shoal_router.prompt import Prompt, Work
from shoal_router.rate_limits import Bucket, Meter, Meters
from shoal_router.retry_after import after_estimate, after_known
from shoal_router.usage import AnswerTokens, BytesPerToken
from tests.router.conftest import Run
from tests.router.scripted import Received, Replica, Rig, chat, error, post, reply, rig
from tests.router.test_keys import SECRET, only, secret_volume, with_keys

CHANCES = st.floats(0, 1, exclude_max=True)


def meter(chance: float = 0.0, **limits: int) -> Meter:
    return Meter(Limits(**limits), lambda: chance, 0.0)


@given(
    st.lists(st.tuples(st.floats(0, 30), st.floats(0, 200)), max_size=60),
    st.integers(1, 600),
)
def test_bucket_lets_through_a_minutes_worth_and_its_rate(asks: list[tuple[float, float]], rate: int) -> None:
    bucket, now, taken, largest = Bucket("tokens", rate, 0.0), 0.0, 0.0, 0.0
    for pause, amount in asks:
        now += pause
        wait_s = bucket.wait_s(amount, now)
        if wait_s == 0:
            bucket.take(amount, now)
            taken += amount
            largest = max(largest, amount)
        else:
            if wait_s > 1e-3:
                assert bucket.wait_s(amount, now + wait_s * 0.99) > 0, "less does not suffice"
            now += wait_s + 1e-9
            assert bucket.wait_s(amount, now) < 1e-6, "what was said to suffice does"
        # One request that is larger than the whole bucket may overdraw it.
        assert taken <= rate + rate / 60 * now + max(0.0, largest - rate) + 1e-6
        assert bucket.level(now) <= rate


@given(st.floats(0, 10_000), CHANCES)
def test_retry_after_is_whole_seconds_near_the_wait_and_known_waits_are_never_cut_short(
    wait_s: float, chance: float
) -> None:
    known, estimate = after_known(wait_s, chance), after_estimate(wait_s, chance)
    assert 1 <= known <= 3600
    assert 1 <= estimate <= 3600
    assert known >= min(wait_s, 3600) - 1e-5
    assert known <= 1.2 * wait_s + 1
    assert 0.8 * min(wait_s, 3600) - 1e-5 <= estimate <= 1.2 * wait_s + 1


def refused(m: Meter, tokens: float, now: float) -> RateLimited:
    with pytest.raises(RateLimited) as error:
        m.begin(tokens, now)
    assert (error.value.status, error.value.code) == (429, "rate_limit_exceeded")
    return error.value


def test_requests_above_the_rate_are_told_when_there_is_one_again() -> None:
    m = meter(requests_per_minute=2)
    for _ in range(2):
        m.begin(0, 10.0).end(0, 10.0)
    assert refused(m, 0, 10.0).retry_after_s == 30
    assert refused(m, 0, 30.0).retry_after_s == 10
    m.begin(0, 40.0)
    assert (m.requests, m.refused, m.in_flight) == (3, 2, 1)


def test_estimated_tokens_are_replaced_by_the_true_ones() -> None:
    m = meter(tokens_per_minute=600)
    m.begin(600, 0.0).end(300, 0.0)
    assert refused(m, 301, 0.0).retry_after_s == 1
    grant = m.begin(300, 0.0)
    grant.end(900, 0.0)  # 600 more than thought
    assert refused(m, 1, 0.0).retry_after_s == 61
    assert m.tokens == 1200


@pytest.mark.parametrize(
    ("status", "used"), [(200, 50), (499, 50), (400, 0), (429, 0), (503, 0)], ids=lambda value: str(value)
)
def test_error_costs_no_tokens_and_a_reply_without_usage_what_was_thought(status: int, used: int) -> None:
    gate = Gate(
        (), "none", None, ratios=BytesPerToken(), answers=AnswerTokens(), now=lambda: 0.0, chance=lambda: 0.0
    )
    m = meter(tokens_per_minute=100)
    prompt = Prompt("m", False, Work.GENERATE, 160, [], max_tokens=10)
    gate.end(m.begin(gate.expected_tokens(prompt), 0.0), prompt, status, None)
    assert m.tokens == used
    assert m.token_bucket is not None
    assert m.token_bucket.level(0.0) == 100 - used


def test_request_larger_than_the_bucket_waits_for_a_full_one_and_is_paid_off() -> None:
    m = meter(tokens_per_minute=60)
    m.begin(10, 0.0)
    assert refused(m, 1000, 0.0).retry_after_s == 10
    m.begin(1000, 10.0)
    assert refused(m, 1, 10.0).retry_after_s == 941


def test_requests_in_flight_are_bounded_and_come_back_on_their_end() -> None:
    m = meter(max_in_flight=2)
    grants = [m.begin(1, 0.0) for _ in range(2)]
    assert refused(m, 1, 0.0).headers == ()
    grants[0].end(1, 1.0)
    m.begin(1, 1.0)
    assert m.in_flight == 2


def test_refusal_for_tokens_takes_no_request() -> None:
    m = meter(requests_per_minute=2, tokens_per_minute=10)
    m.begin(10, 0.0)
    refused(m, 10, 0.0)
    assert m.request_bucket is not None
    assert m.request_bucket.level(0.0) == 1


def test_headers_are_those_of_openai() -> None:
    m = meter(requests_per_minute=60, tokens_per_minute=6000)
    lines = m.begin(9000, 0.0).meter.lines(0.5).decode().split("\r\n")
    assert lines == [
        "x-ratelimit-limit-requests: 60",
        "x-ratelimit-remaining-requests: 59",
        "x-ratelimit-reset-requests: 500ms",
        "x-ratelimit-limit-tokens: 6000",
        "x-ratelimit-remaining-tokens: 0",
        "x-ratelimit-reset-tokens: 1m30s",
        "",
    ]
    assert meter(max_in_flight=1).begin(1, 0.0).meter.lines(0.0) == b""


def key(name: str, **limits: int) -> Key:
    return Key(name, digest_of(name.encode()), limits=Limits(**limits))


def test_keys_that_are_read_anew_go_on_where_they_were() -> None:
    meters = Meters(lambda: 0.0, lambda: 0.0)
    meters.set_keys([key("a", requests_per_minute=10), key("b")])
    grants = [meters.by_name["a"].begin(1.0, 0.0) for _ in range(8)]
    meters.set_keys([key("a", requests_per_minute=9)])
    assert list(meters.by_name) == ["a"]
    meters.by_name["a"].begin(1.0, 0.0)
    with pytest.raises(RateLimited):
        meters.by_name["a"].begin(1.0, 0.0)
    for grant in grants:
        grant.end(0.0, 0.0)
    assert meters.by_name["a"].in_flight == 1


def usage(prompt: int, completion: int) -> bytes:
    fields = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return reply(json.dumps({"choices": [], "usage": fields}).encode())


async def ask(r: Rig, content: str = "hi", **fields: Any) -> Any:
    return await r.ask(post(body=chat(content, **fields), headers=f"Authorization: Bearer {SECRET}\r\n"))


def test_client_sees_its_limits_and_is_refused_above_them(run: Run, tmp_path: Path) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(usage(30, 20))

    async def scenario() -> None:
        path = secret_volume(tmp_path, only("one", requestsPerMinute=2, tokensPerMinute=10_000))
        async with rig(Replica(script=answer), settings=with_keys(path)) as r:
            first = await ask(r, max_tokens=10)
            assert first.status == 200
            assert first.headers["x-ratelimit-remaining-requests"] == "1"
            assert 9_900 < int(first.headers["x-ratelimit-remaining-tokens"]) < 10_000
            second = await ask(r, max_tokens=10)
            assert 9_900 < int(second.headers["x-ratelimit-remaining-tokens"]) <= 9_950 + 1
            third = await ask(r)
            assert (third.status, third.code) == (429, "rate_limit_exceeded")
            assert re.fullmatch(r"2\d|3\d", third.headers["retry-after"])
            assert third.headers["x-ratelimit-remaining-requests"] == "0"
            metered = r.router.gate.meters.by_name["one"]
            assert (metered.requests, metered.refused, metered.tokens, metered.in_flight) == (2, 1, 100, 0)
            assert len(r.replicas[0].requests) == 2

    run(scenario())


def test_request_in_flight_ends_with_its_client_too(run: Run, tmp_path: Path) -> None:
    hang = asyncio.Event()

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        if b"wait" in request.body:
            await hang.wait()
        writer.write(error(400, "bad") if b"bad" in request.body else usage(1, 1))

    async def scenario() -> None:
        path = secret_volume(tmp_path, only("one", maxInFlight=1))
        async with rig(Replica(script=answer), settings=with_keys(path)) as r:
            metered = r.router.gate.meters.by_name["one"]
            client = await r.connect()
            client.writer.write(post(body=chat("wait"), headers=f"Authorization: Bearer {SECRET}\r\n"))
            async with asyncio.timeout(5):
                while metered.in_flight == 0:
                    await asyncio.sleep(0.002)
            assert (await ask(r)).code == "rate_limit_exceeded"
            client.reset()
            async with asyncio.timeout(5):
                while metered.in_flight == 1:
                    await asyncio.sleep(0.002)
            assert (await ask(r, "bad")).status == 400
            assert (await ask(r)).status == 200
            assert metered.in_flight == 0

    run(scenario())
