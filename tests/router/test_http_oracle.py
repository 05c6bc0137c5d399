"""Nobody reads a message otherwise than the router does: not h11, not the engine behind it, not the client.

Messages are written by a grammar that knows where parsers go wrong, then damaged and cut at random places.
"""

from __future__ import annotations

import asyncio
import re
from itertools import pairwise
from typing import Any

import pytest
import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from shoal_engine.server.connection import connection_type
from shoal_engine.server.limits import Limits
from tests.router.http_oracle import disagreement, onward, router_reading
from tests.router.reply_oracle import Wire, reply_disagreement, router_reply

CRLF = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\n\r\n"])
BLANK = st.sampled_from([b" "] * 6 + [b"", b"  ", b"\t", b" \t ", b"\x0b", b"\xa0"])
NUMBERS = st.one_of(
    st.integers(0, 12).map(lambda n: b"%d" % n),
    st.sampled_from(
        [b"+3", b"-1", b"3, 3", b"3,4", b"0x3", b"3 4", b"3.0", b"\xb2", b"00000000000000000000003"]
    ),
    st.sampled_from([b"", b"18446744073709551619", b"9" * 30]),
)
CODINGS = st.sampled_from(
    [b"chunked"] * 4
    + [b"Chunked", b"chunked,", b",chunked", b"gzip, chunked", b"chunked, gzip", b"identity", b"chunked;q=1"]
    + [b'"chunked"', b"chunked\x00", b"x", b"", b"chun ked", b"\x0bchunked"]
)
NAMES = st.one_of(
    st.sampled_from(
        [b"X-One", b"x-two", b"Accept", b"Content_Length", b"Transfer_Encoding", b"X-Shoal-Chain"]
    ),
    st.sampled_from(
        [b"Connection", b"Expect", b"Host", b"Upgrade", b"TE", b"Trailer", b"Authorization", b"Cookie"]
    ),
    st.binary(min_size=1, max_size=3),
)
VALUES = st.one_of(
    st.sampled_from(
        [b"a", b"", b"close", b"keep-alive", b"host, x-one", b"content-length", b"upgrade", b"100-continue"]
    ),
    st.sampled_from([b"a\r\n b", b"a\r\n\tb", b"a\rX: b", b"a\nX: b", b"a\x00b", b"a\x7f", b"\xff", b"h2c"]),
    st.binary(max_size=6),
)


def line(name: st.SearchStrategy[bytes], value: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    colons = st.sampled_from([b":"] * 12 + [b" :", b"\t:", b"", b"::"])
    return st.tuples(name, colons, BLANK, value, BLANK).map(b"".join)


LINES = st.one_of(
    line(st.just(b"Content-Length"), NUMBERS),
    line(st.just(b"Transfer-Encoding"), CODINGS),
    line(NAMES, VALUES),
)
EXTENSIONS = st.sampled_from(
    [b""] * 6 + [b";a", b";a=b", b';a="b"', b';a="b\r\nc"', b";a\nb", b";a\rb", b" ", b";", b";\xff"]
)
SIZES = st.sampled_from(
    [b"%x", b"%x", b"%X", b"0%x", b"000000000000000000000%x", b"0x%x", b"+%x", b" %x", b"%x "]
)


@st.composite
def chunked(draw: st.DrawFn) -> bytes:
    body = b""
    for data in draw(st.lists(st.binary(min_size=1, max_size=12), max_size=3)):
        size = draw(SIZES) % len(data) if draw(st.integers(0, 9)) else b"%x" % draw(st.integers(0, 20))
        body += size + draw(EXTENSIONS) + draw(CRLF) + data + draw(CRLF)
    trailers = [piece + draw(CRLF) for piece in draw(st.lists(LINES, max_size=2))]
    return body + b"0" + draw(EXTENSIONS) + draw(CRLF) + b"".join(trailers) + draw(CRLF)


BODIES = st.one_of(
    chunked(), st.binary(max_size=12), st.just(b""), st.just(b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n")
)
METHODS = st.sampled_from(
    [b"POST"] * 6 + [b"GET", b"HEAD", b"CONNECT", b"OPTIONS", b"PRI", b"get", b"M-SEARCH", b"X"]
)
TARGETS = st.one_of(
    st.sampled_from(
        [b"/a", b"/a?b=c", b"/%00", b"/a b", b"//h/a", b"/a#b", b"http://h/a", b"*", b"h:1", b"/\xc3\xa4"]
    ),
    st.binary(max_size=4).map(lambda tail: b"/" + tail),
)
VERSIONS = st.sampled_from(
    [b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"RTSP/1.1", b"HTTP/1.1 ", b""]
)
FIRST_LINES = st.tuples(METHODS, BLANK, TARGETS, BLANK, VERSIONS).map(b"".join)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    lines = [
        draw(FIRST_LINES),
        *([b"Host: h"] if draw(st.integers(0, 9)) else []),
        *draw(st.lists(LINES, max_size=3)),
    ]
    head = b"".join(each + draw(CRLF) for each in lines)
    return head + draw(CRLF) + draw(BODIES)


STATUS_LINES = st.sampled_from(
    [b"HTTP/1.1 200 OK"] * 8
    + [
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 204 X",
        b"HTTP/1.1 304 X",
        b"HTTP/1.1 100 X",
        b"HTTP/1.1 101 X",
        b"HTTP/1.1 200",
    ]
    + [
        b"HTTP/1.1 999 X",
        b"HTTP/2 200",
        b"RTSP/1.0 200 OK",
        b"HTTP/1.1  200 X",
        b"HTTP/1.1 20 X",
        b"HTTP/1.1 200 \xff",
    ]
)


@st.composite
def replies(draw: st.DrawFn) -> bytes:
    lines = [draw(STATUS_LINES), *draw(st.lists(LINES, max_size=3))]
    return b"".join(each + draw(CRLF) for each in lines) + draw(CRLF) + draw(BODIES)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(at)] or [data]


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


OK = b"HTTP/1.1 200 OK\r\n"
FRAMED_TRAILER = b"Transfer-Encoding: chunked\r\n\r\n0\r\nTransfer-Encoding: \xff\r\n\r\n"
PLACES = st.lists(st.integers(0, 400), max_size=4)


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """Messages of one connection; some repeat the one before with another body, as clients do."""
    messages = draw(st.lists(requests(), min_size=1, max_size=3))
    for body in draw(st.lists(st.binary(max_size=12), max_size=2)):
        head, _, _ = messages[-1].partition(b"\r\n\r\n")
        length = draw(
            st.sampled_from([b"%d" % len(body)] * 3 + [b"%d " % len(body), b"0%d" % len(body), b"7"])
        )
        messages.append(
            re.sub(rb"(?i)(content-length: *)[0-9]+", rb"\g<1>" + length, head) + b"\r\n\r\n" + body
        )
    return messages


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(conversations(), PLACES)
@example(
    [b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(b), b) for b in (b"a", b"bc")], []
)
@example([b"POST /a HTTP/1.1\r\nHost: h\r\n" + FRAMED_TRAILER], [])
def test_no_party_reads_a_request_otherwise_than_the_router(messages: list[bytes], places: list[int]) -> None:
    data = b"".join(messages)
    assert disagreement(data, [bytewise(data), cut(data, places), messages]) is None


@settings(max_examples=800, deadline=None, derandomize=True)
@given(replies(), PLACES)
@example(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", [])
@example(OK + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [])
@example(b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", [])
@example(b"\r\n" + OK + b"Content-Length: 0\r\n\r\n", [])
@example(OK + b"Content-Length: 0\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n", [38])
@example(OK + FRAMED_TRAILER, [])
@example(OK + b"Content-Length: 1\r\n\r\na\r\n", [])
@example(OK + b"Content-Length: 00000000000000000000001\r\n\r\na", [])
@example(OK + b"Transfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n", [39])
@example(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n\r\n", [])
def test_no_party_reads_a_reply_otherwise_than_the_router(data: bytes, places: list[int]) -> None:
    assert reply_disagreement(data, [bytewise(data), cut(data, places)]) is None


@pytest.mark.parametrize("lines", [b"Content-Length: 2", b"Transfer-Encoding: chunked", b""])
def test_oracle_reads_the_plain_cases(lines: bytes) -> None:
    body = b"2\r\nab\r\n0\r\n\r\n" if b"chunked" in lines else b"ab"
    reply = router_reply([OK + lines + b"\r\n" * (2 if lines else 1) + body])
    assert (reply.ended, reply.passed.endswith(body), reply.kept) == (True, True, bool(lines))


async def engine_reading(data: bytes) -> list[tuple[str, bytes, bytes]]:
    """Method, raw target and body of each request that the engine's real connection class hands to its application."""
    seen: list[tuple[str, bytes, bytes]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            event = await receive()
            assert event["type"] == "http.request", "the engine waits for more than was sent"
            body, more = body + event["body"], event.get("more_body", False)
        query = scope["query_string"]
        seen.append((scope["method"], scope["raw_path"] + (b"?" + query if query else b""), body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None)
    connection = connection_type(Limits())(config=config, server_state=ServerState(), app_state={})
    connection.connection_made(Silent())
    connection.data_received(data)
    for _ in range(40):
        await asyncio.sleep(0)
    connection.connection_lost(None)
    return seen


class Silent(Wire):
    """A socket to a client that takes everything."""

    def write(self, data: object) -> None: ...

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(requests(), min_size=1, max_size=3).map(b"".join))
@example(b"POST /a?b HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab" * 3)
def test_engine_itself_reads_what_the_router_means(data: bytes) -> None:
    accepted = router_reading([data]).requests
    seen = asyncio.run(engine_reading(onward(accepted)))
    assert seen == [(r.method.decode(), r.target, r.body) for r in accepted]
