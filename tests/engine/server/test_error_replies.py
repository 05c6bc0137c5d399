from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.engine.server.running import Running, serving, until
from tests.engine.server.scripted_engine import BAD, REFUSE, Script


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/nothing", {}, 404, "not_found"),
        ("GET", "/v1/models/other", {}, 404, "model_not_found"),
        ("GET", "/v1/completions", {}, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", {}, 405, "method_not_allowed"),
        ("POST", "/v1/completions", {"content": b"{"}, 400, "invalid_json"),
        ("POST", "/v1/completions", {"json": {"prompt": "a", "model": "gpt-4"}}, 404, "model_not_found"),
        ("POST", "/tokenize", {"json": {"prompt": "a", "model": "gpt-4"}}, 404, "model_not_found"),
        ("POST", "/tokenize", {"json": {}}, 400, "invalid_value"),
        ("POST", "/detokenize", {"json": {"tokens": [10**6]}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"data": {"a": "b"}}, 415, "unsupported_media_type"),
        (
            "POST",
            "/v1/completions",
            {"json": {}, "headers": {"content-encoding": "gzip"}},
            415,
            "unsupported_media_type",
        ),
        ("POST", "/v1/completions", {"content": b" " * (8 << 20) + b"{}"}, 413, "body_too_large"),
        ("POST", "/v1/completions", {"json": {"prompt": [9] * 512}}, 400, "context_length_exceeded"),
        (
            "POST",
            "/v1/completions",
            {"json": {"prompt": [9] * 500, "max_tokens": 13}},
            400,
            "context_length_exceeded",
        ),
        ("POST", "/v1/completions", {"json": {"prompt": "word " * 600}}, 400, "context_length_exceeded"),
        ("POST", "/v1/completions", {"json": {"prompt": [5, 49_152]}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"json": {"prompt": [-1]}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"json": {"prompt": []}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"json": {"prompt": [[]]}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"json": {"prompt": ["a"] * 65}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"json": {"prompt": ["a"] * 33, "n": 4}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"json": {"prompt": "a", "suffix": "b"}}, 400, "unsupported_parameter"),
        ("POST", "/v1/completions", {"json": {"prompt": "a", "cache_salt": "a/b"}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"json": {"prompt": "a", "priority": 2**31}}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"json": {"prompt": [BAD]}}, 500, "bad_numbers"),
        ("POST", "/v1/completions", {"json": {"prompt": [REFUSE]}}, 500, "internal_error"),
    ],
)
def test_every_error_has_openais_shape_and_a_code(
    server: Running, method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    if method == "POST":
        options.setdefault("headers", {}).setdefault(
            "content-type", None if "data" in options else "application/json"
        )
        options["headers"] = {key: value for key, value in options["headers"].items() if value is not None}
    response = server.http.request(method, path, **options)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    assert server.complete(max_tokens=2).status_code == 200


def test_one_request_that_fails_does_not_touch_its_neighbours(server: Running) -> None:
    alone = server.complete(max_tokens=200).json()["choices"]
    with ThreadPoolExecutor(4) as pool:
        neighbours = [pool.submit(server.complete, max_tokens=200) for _ in range(3)]
        while not all(neighbour.done() for neighbour in neighbours):
            assert server.complete([BAD]).status_code == 500
    assert [neighbour.result().json()["choices"] for neighbour in neighbours] == [alone] * 3


def test_a_bad_choice_ends_a_stream_with_its_error(server: Running) -> None:
    body = {"prompt": [[40], [BAD]], "max_tokens": 400, "stream": True}
    response = server.http.post("/v1/completions", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "bad_numbers")
    assert server.open_requests() == 0


def test_a_full_queue_is_429_with_a_time_to_come_back() -> None:
    with serving(Script(max_queued=1, max_running=1, step_s=0.002)) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.complete, max_tokens=900)
        until(lambda: server.metric("vllm:num_requests_running") == 1)
        second = pool.submit(server.complete, max_tokens=2)
        until(lambda: server.metric("vllm:num_requests_waiting") == 1)
        for stream in (False, True):
            full = server.complete(max_tokens=20, stream=stream)
            assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
            assert full.headers["retry-after"] == "7"
            assert full.headers["x-shoal-not-started"] == "true"
        assert server.metric("vllm:admission_rejections_total", reason="queue_full") == 2
        assert server.metric("vllm:request_success_total", finished_reason="error") == 2
        assert (first.result().status_code, second.result().status_code) == (200, 200)


def test_what_the_engine_would_refuse_is_refused_without_asking_it() -> None:
    with (
        serving(Script(max_requests=3, max_running=1, step_s=0.005)) as server,
        ThreadPoolExecutor(3) as pool,
    ):
        assert server.complete(max_tokens=1, n=4).status_code == 429
        running = [pool.submit(server.complete, max_tokens=60) for _ in range(3)]
        until(lambda: server.open_requests() == 3)
        full = server.complete(max_tokens=1)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert 1 <= int(full.headers["retry-after"]) <= 60
        assert full.headers["x-shoal-not-started"] == "true"
        assert {each.result().status_code for each in running} == {200}
        assert server.complete(max_tokens=1).status_code == 200
