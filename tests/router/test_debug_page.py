"""/debug: the page is HTML whatever names say, and shows what the router decided; programs get the same as JSON."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_router.debug_page import page
from shoal_router.debug_view import Choice, Event, Model, Option, Queue, Replica, View
from shoal_router.policy import Candidate, Prices, Weights, costs_of
from tests.router.conftest import Run
from tests.router.scripted import FAST, Received, chat, get, post, reply, rig, stream_until, until
from tests.router.scripted import Replica as Scripted

VOID = {"meta", "br", "link"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;$script"


class Page(HTMLParser):
    """The page as a browser's parser sees it: tags that nest, and the text in them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.scripts = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts += data
        elif self.open and self.open[-1] != "style":
            self.text += data


def filled(kind: type[msgspec.Struct], words: str, **fields: Any) -> Any:
    """A value whose texts are all `words`."""
    plain = {"str": words, "int": 7, "float": 0.5, "bool": True, "list[str]": [words], "int | None": 7}
    return kind(
        **{name: plain[str(of)] for name, of in kind.__annotations__.items() if name not in fields} | fields
    )


def view_of(words: str) -> View:
    options = [filled(Option, words, chosen=True), filled(Option, words, chosen=False)]
    return filled(
        View,
        words,
        replicas=[filled(Replica, words)],
        models=[filled(Model, words)],
        queues=[filled(Queue, words)],
        choices=[filled(Choice, words, options=options)],
        events=[filled(Event, words)],
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.one_of(st.text(max_size=40), st.just(HOSTILE)))
def test_names_from_outside_are_text_and_never_markup(words: str) -> None:
    plain, hostile = (
        Page(page(view_of("x")).decode()),
        Page(page(view_of(words)).decode(errors="surrogatepass")),
    )
    assert hostile.tags == plain.tags
    assert hostile.scripts == plain.scripts
    assert [name for name, _ in hostile.attributes] == [name for name, _ in plain.attributes]


def test_hostile_words_are_shown_as_they_are() -> None:
    assert Page(page(view_of(HOSTILE)).decode()).text.count(HOSTILE) >= 10


async def counted(request: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(
        reply(
            b'{"usage":{"prompt_tokens":30,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":16}}}'
        )
    )


async def dies(request: Received, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


def test_page_and_json_show_the_same_router(run: Run) -> None:
    async def scenario() -> None:
        async with rig(
            Scripted(models=("m", HOSTILE), script=counted), Scripted(models=("m",), script=counted)
        ) as r:
            for _ in range(3):
                await r.ask(post(headers="X-Request-Id: seen\r\n", body=chat("x" * 3000)))
            await r.ask(post(body={"model": HOSTILE + "?"}))
            html = await r.ask(get("/debug"))
            assert html.headers["content-type"] == "text/html; charset=utf-8"
            shown = Page(html.raw_body.decode())
            data = (await r.ask(get("/debug?format=json"))).json
            assert (await r.ask(get("/debug", "Accept: application/json\r\n"))).json["version"] == data[
                "version"
            ]
            browser = "Accept: text/html,application/xhtml+xml,application/json;q=0.9\r\n"
            assert (await r.ask(get("/debug", browser))).raw_body.startswith(b"<!doctype html>")
        assert [replica["state"] for replica in data["replicas"]] == ["healthy", "healthy"]
        assert {model["name"] for model in data["models"]} == {"m", HOSTILE}
        (first, *others) = data["choices"]
        assert len(others) == 2
        assert (first["request_id"], first["status"], first["outcome"]) == ("seen", 200, "done")
        assert (first["prompt_tokens"], first["cached_tokens"]) == (30, 16)
        assert [option["chosen"] for option in first["options"]] == [True, False], "the cheapest was taken"
        assert first["options"][0]["cached"] > 0, "it had served the same prompt before"
        assert data["events"][0]["kind"] == "model_not_found"
        for word in ("seen", HOSTILE, "model_not_found", first["replica"]):
            assert word in shown.text or word.replace("_", " ") in shown.text

    run(scenario())


def test_page_runs_no_script_but_its_own(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Scripted()) as r:
            html = await r.ask(get("/debug"))
        policy = html.headers["content-security-policy"]
        digest = base64.b64encode(
            hashlib.sha256(Page(html.raw_body.decode()).scripts.encode()).digest()
        ).decode()
        assert f"script-src 'sha256-{digest}';" in policy
        assert "default-src 'none'" in policy
        assert not re.search(rb"(src|href)=", html.raw_body), "nothing is fetched from elsewhere"

    run(scenario())


def test_ejections_failed_attempts_and_waiting_tenants_are_seen(run: Run) -> None:
    release = asyncio.Event()

    async def scenario() -> None:
        metrics = b"vllm:num_requests_running 0\nshoal:max_num_seqs 1\nshoal:max_num_requests 1\n"
        replica = Scripted(script=dies, metrics=metrics)
        async with rig(replica, settings=replace(FAST, api_keys=())) as r:
            await r.ask(post(body=chat("deadly")))
            seen = (await r.ask(get("/debug?format=json"))).json
            assert {"suspect"} <= {event["kind"] for event in seen["events"]}
            assert {choice["outcome"] for choice in seen["choices"]} == {"lost"}
            replica.script = stream_until(release)
            clients = [await r.connect() for _ in range(4)]
            for client in clients:
                client.writer.write(post(body=chat("hi", stream=True)))
            await until(
                lambda: bool(r.router._proxy.admission.queues)
            )  # what waits is nowhere else to be seen
            seen = (await r.ask(get("/debug?format=json"))).json
            assert sum(queue["requests"] for queue in seen["queues"]) == seen["held_requests"] > 0
            assert {queue["model"] for queue in seen["queues"]} == {"m"}
            assert seen["choices"][0]["outcome"] == ""
            Page((await r.ask(get("/debug"))).raw_body.decode())
            release.set()
            for client in clients:
                client.reset()

    run(scenario())


@pytest.mark.parametrize("mean", [None, 3.0])
def test_costs_are_those_that_the_choice_went_by(mean: float | None) -> None:
    candidates = [Candidate(1, 100.0, 50.0, 2.0), Candidate(2, 0.0, 0.0, 1.0)]
    costs = costs_of(400.0, candidates, Weights(recompute=2.0, in_flight_tokens=64.0), Prices(), mean)
    assert costs == [50.0 + 128.0 + 600.0, 64.0 + 800.0]
