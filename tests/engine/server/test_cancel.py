"""A client that leaves takes its work along, in whatever state it is."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.engine.server.running import Running, serving, until
from tests.engine.server.scripted_engine import Script


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(Script(step_s=0.002, max_running=4, max_model_len=10**6)) as running:
        yield running


def send(server: Running, path: str = "/v1/completions", **body: Any) -> socket.socket:
    """Send a request that will not end by itself; the answer is the caller's to read or not."""
    address = urlsplit(server.url)
    assert address.hostname is not None
    assert address.port is not None
    client = socket.create_connection((address.hostname, address.port))
    content = json.dumps({"max_tokens": 900_000, "prompt": [40], **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    client.sendall(head.encode() + content)
    return client


@pytest.mark.parametrize(
    ("body", "requests"),
    [
        ({"stream": True}, 1),
        ({"stream": False}, 1),
        ({"stream": False, "n": 3}, 3),
        ({"stream": True, "n": 2, "prompt": [[40], [41]]}, 4),
        ({"stream": False, "prompt": [[40]] * 30}, 30),  # most of them queued
        ({"stream": True, "prompt": [[40]] * 30}, 30),
    ],
    ids=str,
)
def test_what_a_client_asked_for_is_aborted_when_it_leaves(server: Running, body: Any, requests: int) -> None:
    left = server.metric("shoal:disconnect_aborts_total")
    aborted = server.metric("vllm:request_success_total", finished_reason="abort")
    client = send(server, **body)
    until(lambda: server.open_requests() == requests)
    client.close()
    closed_s = time.monotonic()
    until(lambda: server.open_requests() == 0)
    assert time.monotonic() - closed_s < 2  # the rule is 0.1; the rest is for a busy test machine
    until(lambda: server.metric("vllm:num_requests_running") == 0)
    until(lambda: server.metric("vllm:num_requests_waiting") == 0)
    assert server.metric("shoal:disconnect_aborts_total") == left + 1
    assert server.metric("vllm:request_success_total", finished_reason="abort") == aborted + requests


def test_a_client_that_leaves_in_the_middle_of_its_stream_is_noticed(server: Running) -> None:
    with server.http.stream(
        "POST", "/v1/completions", json={"prompt": [40], "max_tokens": 900_000, "stream": True}
    ) as got:
        lines = got.iter_lines()  # kept: an iterator that is dropped closes its stream
        next(lines)
        assert server.open_requests() == 1
    until(lambda: server.open_requests() == 0)


def test_a_client_that_leaves_while_its_prompt_is_tokenised_reaches_no_engine(server: Running) -> None:
    text = "word " * 1_000_000
    client = send(server, prompt=text, truncate_prompt_tokens=100)
    until(lambda: len(server.api.service.answers) == 1)
    client.close()
    until(lambda: not server.api.service.answers)
    assert server.open_requests() == 0


def test_a_client_that_leaves_while_it_sends_is_no_error(server: Running) -> None:
    address = urlsplit(server.url)
    client = socket.create_connection((address.hostname, address.port))
    client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    client.close()
    until(lambda: server.metric("shoal:http_responses_total", status="499") > 0)
    assert server.complete(max_tokens=2).status_code == 200
