"""Streams as a client hears them: their content, however it was cut into events, and their longest silence."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httptools


@dataclass(slots=True)
class Heard:
    """One answer. `problem` says what is wrong with it apart from its content; empty when nothing is."""

    began_s: float = 0.0
    ended_s: float = 0.0
    longest_pause_s: float = 0.0  # between two reads, and before the first
    body: bytes = b""
    problem: str = ""
    port: int = 0

    @property
    def content(self) -> dict[str, Any]:
        return content_of(self.body)


@dataclass
class _Reply:
    """What httptools finds in a reply."""

    pieces: list[bytes] = field(default_factory=list)
    complete: bool = False

    def on_body(self, data: bytes) -> None:
        self.pieces.append(data)

    def on_message_complete(self) -> None:
        self.complete = True


async def ask(port: int, path: str, body: dict[str, Any], name: str) -> Heard:
    """Send one request on a connection of its own and read what comes. Raises OSError if nobody listens."""
    heard = Heard(began_s=time.monotonic(), port=port)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: b\r\nX-Request-Id: {name}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    reply = _Reply()
    parser = httptools.HttpResponseParser(reply)
    last_s = heard.began_s
    try:
        while not reply.complete and (piece := await reader.read(65_536)):
            now_s = time.monotonic()
            heard.longest_pause_s = max(heard.longest_pause_s, now_s - last_s)
            last_s = now_s
            parser.feed_data(piece)
    except (OSError, httptools.HttpParserError) as error:
        heard.problem = repr(error)
    finally:
        writer.close()
    heard.ended_s = time.monotonic()
    heard.body = b"".join(reply.pieces)
    if not heard.problem and not reply.complete:
        heard.problem = f"cut off: {heard.body[-200:]!r}"
    elif not heard.problem and parser.get_status_code() != 200:
        heard.problem = f"status {parser.get_status_code()}: {heard.body[:200]!r}"
    return heard


def content_of(body: bytes) -> dict[str, Any]:
    """Text, log probabilities, ends and usage; what may differ from run to run (id, time, cached tokens) left out.

    Events may be cut differently from run to run: an engine puts into one what it made while nobody read.
    """
    whole: dict[str, Any] = {"text": "", "logprobs": {}, "marks": [], "usage": None}
    names = set()
    for event in body.split(b"\n\n")[:-1]:
        if event.startswith(b":"):
            continue
        if event == b"data: [DONE]":
            whole["marks"].append("done")
            continue
        chunk = json.loads(event.removeprefix(b"data: "))
        names.add((chunk.get("id"), chunk.get("created")))
        if usage := chunk.get("usage"):
            usage.pop("prompt_tokens_details", None)
            whole["marks"].append("usage")
            whole["usage"] = usage
        for choice in chunk.get("choices", ["an error"]):
            _add(whole, choice)
    whole["names"] = len(names)  # one, or the stream was put together wrongly
    return whole


def _add(whole: dict[str, Any], choice: Any) -> None:
    if not isinstance(choice, dict):
        whole["marks"].append(choice)
        return
    delta = choice.get("delta", {})
    if "role" in delta:
        whole["marks"].append(delta["role"])
    whole["text"] += choice.get("text", "") + delta.get("content", "")
    for key, entries in (choice["logprobs"] or {}).items():
        whole["logprobs"].setdefault(key, []).extend(entries)
    if choice["finish_reason"]:
        whole["marks"].append([choice["finish_reason"], choice.get("stop_reason")])
