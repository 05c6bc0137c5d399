from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openai import types
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from tests.engine.server.running import Running, serving
from tests.engine.server.scripted_engine import Script


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(Script()) as running:
        yield running


@pytest.fixture(scope="module")
def document(server: Running) -> Any:
    return server.http.get("/openapi.json").json()


# schemathesis' own pytest integration does not work with pytest 9.2: it is used as the library it is.
@pytest.mark.parametrize(
    "operation",
    [
        *("POST /v1/chat/completions", "POST /v1/completions", "POST /tokenize", "POST /detokenize"),
        *("GET /v1/models", "GET /v1/models/{model}", "GET /health", "GET /ready", "GET /version"),
    ],
)
def test_nothing_the_schema_allows_is_a_server_error(operation: str, server: Running, document: Any) -> None:
    method, path = operation.split()
    api = schemathesis.openapi.from_dict(document)[path][method]
    seen: set[int] = set()

    @settings(
        max_examples=60 if method == "POST" else 10,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=api.as_strategy())
    def run(case: Any) -> None:
        if isinstance(case.body, dict):
            case.body["max_tokens"] = 5  # what is tested is the request, not patience
        response = case.call(base_url=server.url)
        case.validate_response(response, checks=[not_a_server_error, response_schema_conformance])
        seen.add(response.status_code)

    run()
    assert seen & {200, 404 if "{" in path else 200}  # some of it was served


def test_every_reference_resolves_and_every_route_is_there(document: Any) -> None:
    names = set(document["components"]["schemas"])

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    assert {reference.removeprefix("#/components/schemas/") for reference in references(document)} <= names
    assert set(document["paths"]) == {
        *("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}"),
        *("/tokenize", "/detokenize", "/health", "/ready", "/version"),
    }


def test_replies_are_what_openais_types_say(server: Running) -> None:
    messages = [{"role": "user", "content": "hi"}]
    chat = server.post("/v1/chat/completions", messages=messages, logprobs=True, top_logprobs=1).json()
    types.chat.ChatCompletion.model_validate(chat, strict=True)
    completion = server.complete(logprobs=1).json()
    types.Completion.model_validate(completion, strict=True)
    for card in server.http.get("/v1/models").json()["data"]:
        types.Model.model_validate(card, strict=True)


def test_documentation_needs_no_network(server: Running) -> None:
    for path in ("/docs", "/redoc"):
        assert httpx.get(server.url + path).status_code == 404
