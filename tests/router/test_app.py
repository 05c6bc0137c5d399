"""The router's own paths, keys, membership and drain."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import pytest

from shoal_router.discovery import Address
from tests.router.conftest import Run
from tests.router.scripted import (
    FAST,
    LAST_CHUNK,
    PING,
    Received,
    Replica,
    chat,
    chunk,
    get,
    post,
    rig,
    stream_until,
    until,
)

ROOT = Path(__file__).parents[2]


def test_own_paths_answer_without_a_replica(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica(models=("b", "a")), Replica(models=("c", "a"))) as r:
            client = await r.connect()
            assert (await client.ask(get("/health"))).json == {"status": "ok"}
            assert (await client.ask(get("/ready"))).json == {"status": "ready", "replicas": 2}
            assert re.fullmatch(r"\d+\.\d+\.\d+.*", (await client.ask(get("/version"))).json["version"])
            listing = (await client.ask(get("/v1/models"))).json
            assert [model["id"] for model in listing["data"]] == ["b", "a", "c"]
            assert (await client.ask(get("/v1/models/c"))).json["id"] == "c"
            assert (await client.ask(get("/v1/models/d"))).code == "model_not_found"
            debug = (await client.ask(get("/debug?format=json"))).json
            assert [replica["name"] for replica in debug["replicas"]] == [
                replica.url for replica in r.replicas
            ]
            head = await client.ask(get("/health").replace(b"GET", b"HEAD"))
            assert (head.status, head.headers["content-length"]) == (200, "15")
            assert all(not replica.requests for replica in r.replicas)
            client.close()

    run(scenario())


WRONG = [
    (get("/v1/unknown"), 404, "path_not_found"),
    (get("/v1/chat/completions/"), 404, "path_not_found"),
    (get("/v1//models"), 404, "path_not_found"),
    (get("/%76%31/models"), 404, "path_not_found"),
    (get("/v1/chat/completions"), 405, "method_not_allowed"),
    (post("/health"), 405, "method_not_allowed"),
    (post(body=b"{"), 400, "invalid_json"),
    (post(body={"model": "nope"}), 404, "model_not_found"),
    (post(body={"model": 7}), 400, "invalid_value"),
    (post(headers="Content-Encoding: gzip\r\n"), 415, "content_encoding_not_supported"),
]


@pytest.mark.parametrize(("request_bytes", "status", "code"), WRONG)
def test_wrong_request_gets_a_typed_error_in_openai_shape(
    run: Run, request_bytes: bytes, status: int, code: str
) -> None:
    async def scenario() -> None:
        async with rig(Replica()) as r:
            answer = await r.ask(request_bytes)
            assert (answer.status, answer.code) == (status, code)
            assert set(answer.json["error"]) == {"message", "type", "param", "code"}
            assert answer.headers["content-type"] == "application/json"
            assert "allow" in answer.headers or status != 405
            assert not r.replicas[0].requests

    run(scenario())


def test_key_is_needed_where_something_is_served_and_not_for_health(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica(), settings=replace(FAST, api_keys=(b"alpha", b"beta"))) as r:
            for headers in ("", "Authorization: Bearer wrong\r\n", "Authorization: Basic alpha\r\n"):
                answer = await r.ask(post(headers=headers))
                assert (answer.status, answer.code) == (401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "Bearer"
            assert (await r.ask(get("/v1/models"))).status == 401
            for key in ("alpha", "beta"):
                assert (await r.ask(post(headers=f"Authorization: Bearer {key}\r\n"))).status == 200
            assert all("authorization" not in each.headers for each in r.replicas[0].requests)
            for path in ("/health", "/ready", "/metrics", "/version"):
                assert (await r.ask(get(path))).status == 200

    run(scenario())


def test_metrics_count_what_happened(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica()) as r:
            for _ in range(3):
                await r.ask(post())
            await r.ask(post(body={"model": "nope"}))
            text = (await r.ask(get("/metrics"))).raw_body.decode()
            url = r.replicas[0].url
            for line in (
                'shoal_router_requests_total{model="m",code="200"} 3',
                'shoal_router_errors_total{code="model_not_found"} 1',
                "shoal_router_request_duration_seconds_count 3",
                'shoal_router_first_byte_seconds_bucket{le="+Inf"} 3',
                f'shoal_router_replica_state{{replica="{url}",state="healthy"}} 1',
                f'shoal_router_replica_in_flight{{replica="{url}"}} 0',
                f'shoal_router_replica_requests_total{{replica="{url}"}} 3',
                "shoal_router_active_requests 0",
            ):
                assert line in text.splitlines()
            assert "nope" not in text, "labels come from what is served, not from what is asked for"
            named = {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE")}
            for line in text.splitlines():
                assert line.startswith("#") or re.match(r"(\w+?)(_bucket|_sum|_count)?[{ ]", line)[1] in named  # type: ignore[index]

    run(scenario())


def test_replicas_may_be_added_and_taken_away_while_running(run: Run) -> None:
    release = asyncio.Event()

    async def scenario() -> None:
        first, second = Replica(script=stream_until(release)), Replica()
        async with rig(first) as r:
            client = await r.connect()
            client.writer.write(post(body=chat("x" * 2000, stream=True)))
            await client.head()
            await second.start()
            r.discovery.set([Address.from_url(second.url)])
            await r.state("healthy")
            assert (await r.ask(post())).headers["x-shoal-replica"] == second.url
            release.set()
            end = PING + chunk(b"data: [DONE]\n\n") + LAST_CHUNK
            assert await client.reader.readexactly(len(end)) == end, "what it had begun it finishes"
            r.discovery.set([Address.from_url(first.url), Address.from_url(second.url)])
            await r.state("healthy", "healthy")
            client.close()
        await second.kill()

    run(scenario())


def test_drain_finishes_running_requests_and_takes_no_new_ones(run: Run) -> None:
    release = asyncio.Event()

    async def scenario() -> None:
        async with rig(Replica(script=stream_until(release))) as r:
            running, idle = await r.connect(), await r.connect()
            assert (await idle.ask(get("/health"))).status == 200
            port = r.router.port
            running.writer.write(post(body=chat("hi", stream=True)))
            await running.head()
            stopping = asyncio.ensure_future(r.router.stop(5.0))
            assert await idle.rest() == b"", "idle connections are closed at once"
            with pytest.raises(ConnectionError):
                await asyncio.open_connection("127.0.0.1", port)
            assert not stopping.done()
            release.set()
            assert await running.rest() == PING + chunk(b"data: [DONE]\n\n") + LAST_CHUNK
            running.close()
            assert await stopping

    run(scenario())


def test_drain_ends_at_its_timeout(run: Run) -> None:
    async def forever(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with rig(Replica(script=forever)) as r:
            client = await r.connect()
            client.writer.write(post())
            await until(lambda: bool(r.replicas[0].requests))
            assert not await r.router.stop(0.1)
            assert await client.rest() == b""
            await until(lambda: r.replicas[0].disconnects == 1)

    run(scenario())


def test_one_address_has_only_so_many_connections_and_others_keep_theirs(run: Run) -> None:
    async def scenario() -> None:
        settings = replace(FAST, connection=replace(FAST.connection, max_peer_connections=2))
        async with rig(Replica(), settings=settings) as r:
            first, second, third = [await r.connect() for _ in range(3)]
            assert (await first.ask(post())).status == 200
            assert await third.rest() == b"", "one too many"
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", r.router.port, local_addr=("127.0.0.2", 0)
            )
            writer.write(post())
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()
            second.close()
            await until(lambda: len(r.router._listener.connections) == 1)
            fourth = await r.connect()
            assert (await fourth.ask(post())).status == 200
            first.close()
            fourth.close()

    run(scenario())


def test_every_metric_is_documented(run: Run) -> None:
    text = (ROOT / "docs" / "observe.md").read_text()
    documented = set(re.findall(r"[`,] ?`?([a-z_]+)[`{]", text[text.index("## Metrics") :]))

    async def scenario() -> None:
        async with rig(Replica()) as r:
            exposed = (await r.ask(get("/metrics"))).raw_body.decode()
        names = set(re.findall(r"^# TYPE shoal_router_(\w+)", exposed, re.MULTILINE))
        keys = {name for name in names if name.startswith("key_")}  # tenants.md has them
        assert names - keys - documented == set()

    run(scenario())
