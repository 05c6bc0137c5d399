"""What the router adds to a request: read strictly, placed on the right tokens, and never a reason to fail."""

from __future__ import annotations

import base64
import struct
import threading
from collections.abc import Sequence

import httpx
import hypothesis.strategies as st
import pytest
from hypothesis import given

from shoal_api.request_prefix import BLOCK_BYTES
from shoal_engine.messages import PromptTags, Submit
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.server.router_headers import (
    Chain,
    RouterHeaders,
    joint_salt,
    place,
    read_chain,
    read_timeout_s,
)
from tests.engine.server.running import Running, events, serving, until
from tests.engine.server.scripted_engine import Script

hashes = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40)


def header(content_bytes: int, chain: Sequence[int]) -> str:
    data = base64.urlsafe_b64encode(struct.pack(f">{len(chain)}Q", *chain)).rstrip(b"=")
    return f"{content_bytes};{data.decode()}"


def submits(*lengths: int, n: int = 1) -> list[Submit]:
    prompts = [[7] * length for length in lengths]
    return [Submit("", prompt, SamplingParams()) for prompt in prompts for _ in range(n)]


@given(hashes, st.integers(0, BLOCK_BYTES - 1))
def test_a_chain_is_read_as_it_was_written(chain: list[int], rest: int) -> None:
    content_bytes = len(chain) * BLOCK_BYTES + rest
    assert read_chain(header(content_bytes, chain)) == Chain(content_bytes, tuple(chain))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "300",
        "300;",
        ";AAAAAAAAAAA",
        "300;AAAAAAAAAA",  # 7 bytes
        "300;AAAAAAAAAAAA",  # 9 bytes
        "300;AAAAAAAAA",  # no base64 at all
        "300;AAAAAAAAAA+",  # not the alphabet of URLs
        "300;AAAAAAAAAAA=",
        "255;AAAAAAAAAAA",  # a hash needs 256 bytes
        "0300;AAAAAAAAAAA",
        "-300;AAAAAAAAAAA",
        "٣٠٠;AAAAAAAAAAA",
        "300;AAAAAAAAAAA;",
        "300; AAAAAAAAAAA",
        "9999999999999;AAAAAAAAAAA",
    ],
)
def test_a_chain_in_another_form_is_as_if_it_were_not_there(text: str) -> None:
    assert read_chain(text) is None


@given(st.text(max_size=60))
def test_no_text_of_a_header_makes_a_request_fail(text: str) -> None:
    read_chain(text)
    read_timeout_s(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0.0), ("1500", 1.5), ("-1", None), ("1.5", None), ("", None)]
)
def test_a_timeout_is_a_whole_number_of_milliseconds(text: str, expected: float | None) -> None:
    assert read_timeout_s(text) == expected


def test_a_hash_stands_for_its_share_of_the_tokens() -> None:
    # 1000 bytes and 300 tokens: 256 bytes are 76.8 tokens.
    (tags,) = place(Chain(1000, (1, 2, 3)), submits(300))
    assert tags == PromptTags([1, 2, 3], [77, 154, 231])


def test_choices_of_one_prompt_all_carry_its_tags() -> None:
    tags = place(Chain(512, (1, 2)), submits(100, n=3))
    assert tags == [PromptTags([1, 2], [50, 100])] * 3


def test_several_prompts_share_a_chain_in_their_order() -> None:
    # 1024 bytes and 40 tokens: 10 tokens for each hash, counted through all prompts.
    tags = place(Chain(1024, (1, 2, 3, 4)), submits(25, 3, 12, n=2))
    assert tags[::2] == tags[1::2] == [PromptTags([1, 2], [10, 20]), None, PromptTags([3, 4], [2, 12])]


@given(hashes, st.integers(0, BLOCK_BYTES - 1), st.lists(st.integers(1, 500), min_size=1, max_size=5))
def test_every_hash_is_placed_once_on_a_token_of_its_prompt(
    chain: list[int], rest: int, lengths: list[int]
) -> None:
    placed = place(Chain(len(chain) * BLOCK_BYTES + rest, tuple(chain)), submits(*lengths))
    assert [tag for tags in placed if tags for tag in tags.hashes] == chain
    for tags, length in zip(placed, lengths, strict=True):
        if tags is not None:
            assert tags.ends == sorted(tags.ends)
            assert tags.ends[0] >= 1
            assert tags.ends[-1] <= length


def test_prompts_that_were_cut_carry_no_tags() -> None:
    asked = RouterHeaders(Chain(300, (1,)), "tenant")
    (one,) = asked.applied(submits(100), cut=True)
    assert one.tags is None
    assert one.cache_salt == joint_salt("tenant", "")


own_salts = st.from_regex(r"[A-Za-z0-9_-]{0,64}", fullmatch=True)
tenants = st.text(st.characters(max_codepoint=255), max_size=20)


@given(st.tuples(tenants, own_salts), st.tuples(tenants, own_salts))
def test_no_two_tenants_and_salts_are_the_same(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (joint_salt(*one) == joint_salt(*other)) == (one == other)


def timed(server: Running, timeout_ms: int, **body: object) -> httpx.Response:
    body = {"prompt": [40, 41], "max_tokens": 400, **body}
    return server.http.post("/v1/completions", json=body, headers={"x-shoal-timeout-ms": str(timeout_ms)})


@pytest.mark.parametrize("n", [1, 3])
def test_a_request_whose_time_is_over_gets_504_and_is_computed_no_further(n: int) -> None:
    with serving(Script(step_s=0.02)) as server:
        reply = timed(server, 100, n=n)
        assert reply.status_code == 504
        assert reply.json()["error"]["code"] == "request_timeout"
        assert reply.json()["error"].keys() == {"message", "type", "param", "code"}
        assert "x-shoal-not-started" not in reply.headers
        until(lambda: server.metric("vllm:num_requests_running") == 0)
        assert server.open_requests() == 0
        assert server.metric("vllm:request_success_total", finished_reason="abort") == n


def read_to_its_end(server: Running, timeout_ms: int) -> tuple[int, list[str], bool]:
    """Status, lines that are not empty, and whether a long stream ended as HTTP wants it."""
    body = {"prompt": [40, 41], "max_tokens": 2000, "stream": True}
    lines: list[str] = []
    headers = {"x-shoal-timeout-ms": str(timeout_ms)}
    with server.http.stream("POST", "/v1/completions", json=body, headers=headers) as reply:
        try:
            lines.extend(line for line in reply.iter_lines() if line)
        except httpx.RemoteProtocolError:
            return reply.status_code, lines, False
    return reply.status_code, lines, True


def test_a_stream_whose_time_is_over_ends_with_an_error_and_without_done() -> None:
    with serving(Script(step_s=0.02)) as server:
        for timeout_ms in (200, 1000, 5000):  # a busy machine may need longer for the first token
            status, lines, complete = read_to_its_end(server, timeout_ms)
            if status == 200:
                break
        assert status == 200
        assert len(lines) > 1
        assert "request_timeout" in lines[-1]
        assert "data: [DONE]" not in lines
        assert not complete
        until(lambda: server.open_requests() == 0)


def test_a_request_that_waits_for_a_seat_is_ended_as_well() -> None:
    with serving(Script(step_s=0.02, max_running=1)) as server:
        first = threading.Thread(target=read_to_its_end, args=(server, 60_000))
        first.start()
        until(lambda: server.metric("vllm:num_requests_running") == 1)
        status, lines, complete = read_to_its_end(server, 100)
        assert (status, complete) == (504, True)
        assert "request_timeout" in lines[0]
        assert server.open_requests() == 1
    first.join()


def test_a_request_with_time_enough_is_answered(server: Running) -> None:
    reply = timed(server, 60_000, max_tokens=3, stream=True)
    assert events(reply)[-1] == "[DONE]"
    assert timed(server, 60_000, max_tokens=3).status_code == 200
    odd = {"x-shoal-timeout-ms": "soon", "x-shoal-chain": "?"}
    body = {"prompt": [40], "max_tokens": 1}
    assert server.http.post("/v1/completions", json=body, headers=odd).status_code == 200
