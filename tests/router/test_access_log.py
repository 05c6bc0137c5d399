"""A line per request in the access log: what became of it, and that nobody waits for the log."""

from __future__ import annotations

import io
import threading

from shoal_router import access_log
from shoal_router.access_log import AccessLog
from shoal_router.journal import Journal
from tests.router.conftest import Run
from tests.router.scripted import (
    Replica,
    chat,
    get,
    post,
    rig,
    until,
)
from tests.router.told import LOGGED, Lines, counted, dies, streamed


def test_access_log_has_a_line_per_request_that_says_what_became_of_it(run: Run) -> None:
    async def scenario() -> None:
        lines, replica = Lines(), Replica(script=streamed)
        async with rig(replica, settings=LOGGED, access_log_stream=lines) as r:
            await r.ask(
                post(headers="X-Request-Id: first\r\nConnection: close\r\n", body=chat("hi", stream=True))
            )
            replica.script = counted
            await r.ask(post())
            await r.ask(post(body={"model": "nope"}))
            await r.ask(get("/health"))
            await r.ask(get("/nowhere?secret=1"))
            await r.ask(b"nonsense\r\n\r\n")
        first, second, unknown, health, nowhere, broken = lines.entries
        assert (first["request_id"], first["method"], first["path"]) == (
            "first",
            "POST",
            "/v1/chat/completions",
        )
        assert (first["model"], first["replica"], first["status"]) == ("m", replica.url, 200)
        assert (first["prompt_tokens"], first["cached_tokens"], first["completion_tokens"]) == (30, 16, 7)
        assert (first["stream"], first["retries"], first["resumes"]) == (True, 0, 0)
        assert first["duration_s"] >= 0.019  # the pause in its script, 0.02; libuv counts whole milliseconds
        assert first["duration_s"] > first["first_byte_s"] > 0
        assert (second["stream"], second["prompt_tokens"]) == (False, 30)
        assert (unknown["status"], unknown["replica"], unknown["first_byte_s"]) == (404, "", None)
        assert (health["path"], health["status"]) == ("/health", 200)
        assert (nowhere["path"], nowhere["status"]) == ("/nowhere", 404), (
            "what stands in a query may be a secret"
        )
        assert (broken["method"], broken["status"]) == ("", 400)

    run(scenario())


def test_access_log_tells_of_retries(run: Run) -> None:
    async def scenario() -> None:
        lines, replicas = Lines(), (Replica(script=dies), Replica(script=dies))
        async with rig(*replicas, settings=LOGGED, access_log_stream=lines) as r:
            assert (await r.ask(post())).status == 500
        (failed,) = lines.entries
        assert (failed["status"], failed["retries"]) == (500, 1), "quarantined"

    run(scenario())


def test_access_log_tells_of_clients_that_left(run: Run) -> None:
    async def scenario() -> None:
        lines = Lines()
        async with rig(Replica(script=streamed), settings=LOGGED, access_log_stream=lines) as r:
            client = await r.connect()
            client.writer.write(post(body=chat("hi", stream=True)))
            await client.head()
            client.reset()
            await until(r.idle)
        (left,) = lines.entries
        assert (left["status"], left["retries"]) == (499, 0)

    run(scenario())


def test_access_log_is_turned_on_and_off_while_requests_run(run: Run) -> None:
    async def scenario() -> None:
        lines = Lines()
        async with rig(Replica(), access_log_stream=lines) as r:
            await r.ask(post(headers="X-Request-Id: off\r\n"))
            assert not r.router.access_log
            r.router.set_access_log(True)
            await r.ask(post(headers="X-Request-Id: on\r\n"))
            r.router.set_access_log(False)
            await r.ask(post(headers="X-Request-Id: off\r\n"))
        assert [entry["request_id"] for entry in lines.entries] == ["on"]

    run(scenario())


def test_access_log_whose_reader_is_gone_harms_nobody(run: Run) -> None:
    async def scenario() -> None:
        lines = Lines()
        async with rig(Replica(), settings=LOGGED, access_log_stream=lines) as r:
            lines.close()
            for _ in range(3):
                assert (await r.ask(post())).status == 200

    run(scenario())


def test_access_log_drops_lines_rather_than_wait() -> None:
    class Stuck(io.BytesIO):
        def write(self, data: object) -> int:
            gate.acquire()
            return 0

    gate = threading.Semaphore(0)
    log = AccessLog(Stuck())
    journal = Journal(log, None, lambda: 0.0)
    for _ in range(access_log.MOST_QUEUED + 10):
        journal.own_reply(None, 400)
    assert log.dropped in (9, 10)
    for _ in range(access_log.MOST_QUEUED + 10):
        gate.release()
    log.close()
