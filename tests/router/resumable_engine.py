"""Replicas whose streams can be resumed, as scripts: they speak the engine's side of it and check the router's.

A stream is a list of (stage, ids, event). A script writes it from where the request says to go on, in the chunks and
pieces that a test asks for, and dies where a test wants it to.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.router.scripted import LAST_CHUNK, Received, chunk, error

Step = tuple[str, list[int], bytes]  # stage, ids, event as the client gets it
STATE = "c3RhdGU"
DRAINING = b'data: {"error":{"message":"m","type":"server_error","param":null,"code":"draining"}}\n\n'
ENGINE_DEAD = DRAINING.replace(b"draining", b"engine_unavailable")
OWN_FAULT = DRAINING.replace(b"draining", b"logits_not_finite")


def data(text: str) -> bytes:
    return b"data: %b\n\n" % json.dumps({"choices": [{"delta": {"content": text}}]}).encode()


def stream(tokens: int) -> list[Step]:
    """The whole stream of a request: its opening, so many tokens (some in one event), finish, usage, done."""
    steps: list[Step] = [("open", [], data("role"))]
    token = 0
    while token < tokens:
        ids = [7000 + token + i for i in range(1 + token % 3)]
        steps.append(("tokens", ids, data(f"é{token}")))
        token += len(ids)
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":%d}}\n\n' % tokens
    return [
        *steps,
        ("finish", [], data("end")),
        ("usage", [], usage),
        ("done", [], b"data: [DONE]\n\n"),
    ]


def seen_by_client(steps: Sequence[Step]) -> bytes:
    return b"".join(event for _, _, event in steps)


def with_line(step: Step) -> bytes:
    stage, ids, event = step
    return b":shoal %b %b\n%b" % (stage.encode(), ".".join(map(str, ids)).encode(), event)


def ids_of(steps: Sequence[Step]) -> list[int]:
    return [token for _, ids, _ in steps for token in ids]


def place_of(steps: Sequence[Step], resume: dict[str, Any]) -> int:
    """How many steps the request for the rest has behind it; that is one place or none."""
    (place,) = [
        i
        for i in range(1, len(steps) + 1)
        if steps[i - 1][0] == resume["stage"] and ids_of(steps[:i]) == resume["ids"]
    ]
    return place


@dataclass
class Engine:
    """What the replicas of one model do: `deaths` holds, for one request after another, after how many bytes of the
    body the replica dies; then they live. `pieces` cuts a body into what is written at a time.
    """

    steps: list[Step]
    deaths: list[int] = field(default_factory=list)
    pieces: Callable[[bytes], list[bytes]] = lambda body: [body]
    frame: Callable[[bytes], bytes] = chunk
    resumed_from: list[int] = field(default_factory=list)  # places, in order
    bodies: set[bytes] = field(default_factory=set)
    last_word: bytes = b""  # written before a death
    clean_end: bool = False  # a death that looks like the end of the reply
    refusal: bytes | None = None  # the reply to requests for the rest

    async def __call__(self, request: Received, writer: asyncio.StreamWriter) -> None:
        assert request.headers["x-shoal-resumable"] == "1"
        start = 0
        if "x-shoal-resume" in request.headers:
            assert request.headers["x-shoal-resume"] == STATE
            if self.refusal is not None:
                writer.write(self.refusal)
                return
            raw = request.body
            envelope = json.loads(raw)
            assert envelope.keys() == {"resume", "request"}
            start = place_of(self.steps, envelope["resume"])
            self.resumed_from.append(start)
            self.bodies.add(raw[raw.index(b'"request":') + 10 : -1])
        else:
            self.bodies.add(request.body)
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-shoal-resume: {STATE}\r\n"
        writer.write(head.encode() + b"transfer-encoding: chunked\r\n\r\n")
        body = b"".join(self.frame(with_line(step)) for step in self.steps[start:]) + LAST_CHUNK
        death = self.deaths.pop(0) if self.deaths else None
        for piece in self.pieces(body[:death]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if death is None:
            return
        if self.last_word:
            writer.write(chunk(self.last_word))
        if self.clean_end:
            writer.write(LAST_CHUNK)
            return
        await asyncio.sleep(0.005)
        writer.transport.abort()
        await asyncio.sleep(1)


def boundary(steps: Sequence[Step], count: int) -> int:
    """Bytes of the body that hold the first `count` events, each in a chunk of its own."""
    return sum(len(chunk(with_line(step))) for step in steps[:count])


REFUSALS = {
    "400": error(400, "invalid_value"),
    "no state": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    + chunk(b"data: {}\n\n")
    + LAST_CHUNK,
}
