from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.server.running import Running, serving

WITHOUT_KEY: list[dict[str, str]] = [
    {},
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": "Bearer wrong"},
    {"authorization": "Bearer first-key-and-more"},
    {"authorization": "Bearer first-ke"},
    {"authorization": "Basic first-key"},
    {"authorization": "first-key"},
    {"x-api-key": "first-key"},
]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(api_keys=["first-key", "schlüssel"]) as running:
        yield running


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/version"])
def test_probes_and_scrapers_need_no_key(server: Running, path: str) -> None:
    assert server.http.get(path).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/v1/models",
            "/v1/completions",
            "/v1/chat/completions",
            "/tokenize",
            "/detokenize",
            "/openapi.json",
        ),
        *("/nothing", "/health/", "//health", "/%68ealth/x", "/healthz", "/metrics/x", "/"),
    ],
)
def test_everything_else_is_closed_without_a_valid_key(server: Running, path: str) -> None:
    for headers in WITHOUT_KEY:
        for method in ("GET", "POST"):
            response = server.http.request(method, path, headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
    named = server.http.get(path, headers={"x-request-id": "trace-7"})
    assert named.headers["x-request-id"] == "trace-7"


@pytest.mark.parametrize("key", ["first-key", "schlüssel"])
def test_each_key_opens(server: Running, key: str) -> None:
    headers = {"authorization": f"Bearer {key}".encode()}
    assert server.http.get("/v1/models", headers=headers).status_code == 200
    assert server.http.post("/v1/completions", json={"prompt": [5]}, headers=headers).status_code == 200
    assert server.http.get("/nothing", headers=headers).status_code == 404


def test_keys_are_in_no_reply_and_not_with_the_engine_process(server: Running) -> None:
    assert server.api.client.pid is not None
    with open(f"/proc/{server.api.client.pid}/cmdline", "rb") as file:
        assert b"first-key" not in file.read()
    assert "first-key" not in server.http.get("/metrics").text
