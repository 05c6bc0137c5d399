"""Whatever a body holds, its sender gets a typed answer and nobody else notices."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.engine.server.running import Running, serving
from tests.engine.server.scripted_engine import Script

BODIES = 1000
GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a b c", "max_tokens": 4, "stop": ["x"], "logit_bias": {"5": 1.0}, "n": 1},
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "max_tokens": 4,
        "stream_options": {"include_usage": True},
        "stream": True,
    },
    "/tokenize": {"prompt": "a b c"},
    "/detokenize": {"tokens": [5, 6]},
}
WRONG: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        2**31,
        2**63,
        10**40,
        1.5,
        float("inf"),
        float("nan"),
        "",
        "x",
        "\x00",
        "\U0010ffff",
        [],
        {},
    ),
    *(
        [[]],
        [None],
        [1.5],
        ["a", 1],
        {"a": {}},
        [[[[1]]]],
        "x" * 5000,
        list(range(3000)),
        [-5],
        [49_152],
        {"1": "x"},
    ),
]


def broken(chance: random.Random) -> tuple[str, bytes]:
    """A good body in which one to three things were replaced, removed, doubled, nested or cut off."""
    path = chance.choice(list(GOOD))
    body: Any = copy.deepcopy(GOOD[path])
    for _ in range(chance.randint(1, 3)):
        key = chance.choice(
            [*body, "temperature", "top_p", "logprobs", "seed", "priority", "cache_salt", "echo"]
        )
        match chance.randrange(4):
            case 0 | 1:
                body[key] = chance.choice(WRONG)
            case 2:
                body.pop(key, None)
            case 3:
                body[key] = [body.get(key)] * chance.randint(1, 70)
    text = json.dumps(body).encode()
    match chance.randrange(6):
        case 0:
            return path, text[: chance.randrange(len(text))]
        case 1:
            place = chance.randrange(len(text))
            return path, text[:place] + bytes(chance.choices(range(256), k=3)) + text[place:]
        case 2:
            return path, b"[" * chance.randint(1, 2000) + text
    return path, text


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(Script(max_model_len=600)) as running:
        yield running


def test_a_thousand_malformed_bodies_get_typed_answers_and_their_neighbour_never_notices(
    server: Running,
) -> None:
    chance = random.Random(20260)
    bodies = [broken(chance) for _ in range(BODIES)]
    asked = {"prompt": "The quick brown fox", "max_tokens": 500, "temperature": 0, "return_token_ids": True}
    alone = server.post("/v1/completions", **asked).json()["choices"]
    seen: dict[int, int] = {}
    with ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(server.post, "/v1/completions", **asked)
        for path, content in bodies:
            if neighbour.done():
                assert neighbour.result().json()["choices"] == alone
                neighbour = pool.submit(server.post, "/v1/completions", **asked)
            response = server.http.post(path, content=content, headers={"content-type": "application/json"})
            seen[response.status_code] = seen.get(response.status_code, 0) + 1
            assert response.status_code < 500, (path, content[:500])
            if response.status_code != 200:
                error = response.json()["error"]
                assert error["type"] == "invalid_request_error", (path, content[:500])
                assert error["code"], (path, content[:500])
                assert "Traceback" not in error["message"]
        assert neighbour.result().json()["choices"] == alone
    assert seen[400] > BODIES / 2  # most of them are malformed indeed
    assert server.open_requests() == 0


def test_a_million_token_prompt_is_refused_while_others_go_on(server: Running) -> None:
    numbers = b'{"prompt":[' + b"12345," * 1_300_000 + b"1]}"
    words = b'{"prompt":"' + b"word " * 1_600_000 + b'"}'
    chat = b'{"messages":[{"role":"user","content":"' + b"word " * 1_600_000 + b'"}]}'
    kept = b'{"max_tokens":3,"truncate_prompt_tokens":100,"prompt":"' + b"word " * 1_600_000 + b'"}'
    asked = {"prompt": [40, 41], "max_tokens": 500}
    alone = server.post("/v1/completions", **asked).json()["choices"]
    with ThreadPoolExecutor(5) as pool:
        neighbour = pool.submit(server.post, "/v1/completions", **asked)
        sent = [
            pool.submit(server.http.post, path, content=content, headers={"content-type": "application/json"})
            for path, content in (
                ("/v1/completions", numbers),
                ("/v1/completions", words),
                ("/v1/chat/completions", chat),
            )
        ]
        cut = pool.submit(
            server.http.post, "/v1/completions", content=kept, headers={"content-type": "application/json"}
        )
        for each in sent:
            response = each.result()
            assert response.status_code == 400
            assert response.json()["error"]["code"] == "context_length_exceeded"
        assert neighbour.result().json()["choices"] == alone
        assert cut.result().json()["usage"]["prompt_tokens"] == 100  # tokenised in full, in its own lane
