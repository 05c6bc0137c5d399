"""What an API server answers, as objects and as ApiError."""

from __future__ import annotations

import json

import httpx2 as httpx
import pytest

from shoal_api.kube import JSON_PATCH, ApiError, ApiServer

STATUS = {"kind": "Status", "reason": "Conflict", "message": "the UID has changed", "code": 409}


def server(answer) -> ApiServer:
    client = httpx.AsyncClient(base_url="http://api", transport=httpx.MockTransport(answer))
    return ApiServer(client, "default")


async def test_it_sends_what_it_is_given():
    def answer(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("PATCH", "/api/v1/pods/p")
        assert request.url.params["fieldManager"] == "me"
        assert request.headers["content-type"] == JSON_PATCH
        return httpx.Response(200, json={"got": json.loads(request.content)})

    async with server(answer) as api:
        reply = await api.request(
            "PATCH",
            "/api/v1/pods/p",
            [{"op": "test"}],
            params={"fieldManager": "me"},
            content_type=JSON_PATCH,
        )
    assert reply == {"got": [{"op": "test"}]}


async def test_a_refusal_keeps_kubernetes_own_words():
    async with server(lambda _: httpx.Response(409, json=STATUS)) as api:
        with pytest.raises(ApiError, match="the UID has changed") as caught:
            await api.request("DELETE", "/x")
    assert (caught.value.reason, caught.value.conflict, caught.value.body) == ("Conflict", True, STATUS)


async def test_a_refusal_may_say_when_to_come_back_and_need_not_be_json():
    async with server(lambda _: httpx.Response(429, text="slow down", headers={"retry-after": "3"})) as api:
        with pytest.raises(ApiError, match="slow down") as caught:
            await api.request("GET", "/x")
    assert (caught.value.status, caught.value.retry_after_s) == (429, 3.0)


async def test_a_server_that_is_away_is_an_api_error_too():
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    async with server(answer) as api:
        with pytest.raises(ApiError, match="GET /x: connection refused") as caught:
            await api.request("GET", "/x")
        with pytest.raises(ApiError, match="watch /x"):
            await anext(api.stream("/x", params={}, silence_s=1))
    assert caught.value.status == 0


async def test_a_watch_is_one_object_a_line():
    lines = b'{"type":"ADDED","object":{}}\n{"type":"BOOKMARK","object":{}}\n'
    async with server(lambda _: httpx.Response(200, content=lines)) as api:
        events = [event["type"] async for event in api.stream("/x", params={}, silence_s=1)]
    assert events == ["ADDED", "BOOKMARK"]


async def test_a_watch_may_be_refused():
    async with server(lambda _: httpx.Response(410, json={"reason": "Expired", "message": "too old"})) as api:
        with pytest.raises(ApiError, match="too old") as caught:
            await anext(api.stream("/x", params={}, silence_s=1))
    assert (caught.value.status, caught.value.reason) == (410, "Expired")


async def test_a_kubeconfig_without_a_context_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "config").write_text("apiVersion: v1\nkind: Config\nclusters: []\ncontexts: []\nusers: []\n")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(ApiError, match="set KUBECONFIG to a file with a current-context"):
        ApiServer.from_env()
