from __future__ import annotations

from tests.engine.server.running import MODEL, Running, model_text


def test_text_becomes_tokens_and_back(server: Running) -> None:
    reply = server.post("/tokenize", prompt="Grüße 🦊", return_token_strs=True).json()
    assert reply["tokens"] == model_text().tokenizer.encode("Grüße 🦊")
    assert (reply["count"], reply["max_model_len"]) == (len(reply["tokens"]), 512)
    assert len(reply["token_strs"]) == reply["count"]
    assert server.post("/detokenize", tokens=reply["tokens"]).json() == {"prompt": "Grüße 🦊"}


def test_the_model_is_listed(server: Running) -> None:
    (card,) = server.http.get("/v1/models").json()["data"]
    assert (card["id"], card["object"], card["root"], card["max_model_len"]) == (
        MODEL,
        "model",
        "/models/scripted",
        512,
    )
    assert server.http.get(f"/v1/models/{MODEL}").json() == card
    assert server.http.get("/version").json() == {"version": "1.2.3"}


def test_requests_carry_an_id(server: Running) -> None:
    named = server.http.post("/v1/completions", json={"prompt": [5]}, headers={"x-request-id": "job-7.a_b"})
    assert named.headers["x-request-id"] == "job-7.a_b"
    assert named.json()["id"] == "cmpl-job-7.a_b"
    assert server.complete(request_id="mine").json()["id"] == "cmpl-mine"
    assert server.complete().headers["x-request-id"] != server.complete().headers["x-request-id"]
    for wrong in ("a b", "http://10.0.0.1/", "x" * 129, "a;b"):
        refused = server.http.post("/v1/completions", json={"prompt": [5]}, headers={"x-request-id": wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "X-Request-Id")
        assert wrong not in refused.headers["x-request-id"]
        assert server.complete(request_id=wrong).json()["error"]["param"] == "request_id"


def test_metrics_follow_the_requests(server: Running) -> None:
    before = server.metric("vllm:inter_token_latency_seconds_count")
    first = server.metric("vllm:time_to_first_token_seconds_count")
    server.complete(max_tokens=10)
    assert server.metric("vllm:inter_token_latency_seconds_count") == before + 9
    assert server.metric("vllm:time_to_first_token_seconds_count") == first + 1
    assert server.metric("shoal:http_responses_total", route="/v1/completions", status="200") > 0
