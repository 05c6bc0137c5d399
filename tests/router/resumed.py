"""A resumed stream as its client sees it, and the fleet that it comes from."""

from __future__ import annotations

import json
from itertools import pairwise

import httptools

from tests.router.resumable_engine import seen_by_client, stream
from tests.router.scripted import LAST_CHUNK, Answer, Client, Replica, Rig, Script, chat, post

STEPS = stream(9)
WHOLE = seen_by_client(STEPS)
ASK = post(body=chat("hi", stream=True))


class Body:
    """The body of a chunked reply, read by llhttp."""

    def __init__(self, data: bytes) -> None:
        self.body = b""
        self.ended = False
        parser = httptools.HttpResponseParser(self)
        parser.feed_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + data)

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.ended = True


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *[at % (len(data) + 1) for at in cuts]})
    return [data[a:b] for a, b in pairwise(places)]


def fleet(script: Script, count: int = 3) -> list[Replica]:
    return [Replica(script=script) for _ in range(count)]


async def begun(r: Rig, request: bytes = ASK) -> tuple[Client, Answer]:
    client = await r.connect()
    client.writer.write(request)
    return client, await client.head()


async def whole_stream(client: Client) -> bytes:
    """The events of a stream that ends well."""
    framed = await client.reader.readuntil(b"\r\n" + LAST_CHUNK)
    return Body(framed).body


async def told(r: Rig, request: bytes = ASK) -> tuple[bytes, str]:
    """The events and the error of a stream that is broken off, as it must be told."""
    client, _ = await begun(r, request)
    got = Body(await client.rest())
    client.close()
    assert not got.ended, "the body stays unfinished"
    assert b"[DONE]" not in got.body
    events, _, last = got.body.rpartition(b"data: ")
    return events, json.loads(last)["error"]["code"]
