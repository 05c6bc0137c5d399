"""One meaning or a refusal: what bytes from a client are taken for, by rule. test_http_oracle.py asks h11."""

from __future__ import annotations

from dataclasses import dataclass, field

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_router.errors import PathNotFound, RouterError
from shoal_router.http1 import HttpLimits, Phase, RequestReader
from shoal_router.request import Request

LIMITS = HttpLimits(head_bytes=2048, header_count=20, body_bytes=4096)


@dataclass
class Reading:
    """Everything a reader made of the bytes fed to it."""

    requests: list[Request] = field(default_factory=list)
    errors: list[RouterError] = field(default_factory=list)
    continues: int = 0
    reader: RequestReader = field(init=False)

    def send_continue(self) -> None:
        self.continues += 1


def vet(request: Request) -> None:
    if request.path == "/missing":
        raise PathNotFound("no")


def read(*pieces: bytes, limits: HttpLimits = LIMITS) -> Reading:
    reading = Reading()
    reading.reader = RequestReader(
        limits,
        vet=vet,
        deliver=reading.requests.append,
        refuse=reading.errors.append,
        send_continue=reading.send_continue,
    )
    for piece in pieces:
        reading.reader.feed(piece)
    return reading


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def head(*lines: str, first: str = "POST /a HTTP/1.1", host: bool = True) -> bytes:
    return "\r\n".join([first, *(["Host: h"] if host else []), *lines, "", ""]).encode("latin-1")


REFUSED: dict[str, tuple[bytes, int]] = {
    "length and chunked": (head("Content-Length: 3", "Transfer-Encoding: chunked") + b"abc", 400),
    "chunked and length": (head("Transfer-Encoding: chunked", "Content-Length: 3") + b"abc", 400),
    "length twice": (head("Content-Length: 3", "Content-Length: 3") + b"abc", 400),
    "two lengths": (head("Content-Length: 3", "Content-Length: 4") + b"abc", 400),
    "list of lengths": (head("Content-Length: 3, 3") + b"abc", 400),
    "signed length": (head("Content-Length: +3") + b"abc", 400),
    "hexadecimal length": (head("Content-Length: 0x3") + b"abc", 400),
    "empty length": (head("Content-Length:") + b"abc", 400),
    "gzip, chunked": (head("Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", 400),
    "chunked, identity": (head("Transfer-Encoding: chunked, identity") + b"0\r\n\r\n", 400),
    "identity": (head("Transfer-Encoding: identity"), 400),
    "chunked twice": (head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 400),
    "chunked with a control character": (head("Transfer-Encoding: \x0bchunked"), 400),
    "chunked in HTTP/1.0": (head("Transfer-Encoding: chunked", first="POST /a HTTP/1.0") + b"0\r\n\r\n", 400),
    "chunk size with a sign": (head("Transfer-Encoding: chunked") + b"+3\r\nabc\r\n0\r\n\r\n", 400),
    "chunk size with 0x": (head("Transfer-Encoding: chunked") + b"0x3\r\nabc\r\n0\r\n\r\n", 400),
    "chunk size with a space": (head("Transfer-Encoding: chunked") + b"3 \r\nabc\r\n0\r\n\r\n", 400),
    "chunk line without CR": (head("Transfer-Encoding: chunked") + b"3\nabc\r\n0\r\n\r\n", 400),
    "chunk longer than said": (head("Transfer-Encoding: chunked") + b"3\r\nabcd\r\n0\r\n\r\n", 400),
    "chunk size without end": (head("Transfer-Encoding: chunked") + b"f" * 40, 400),
    "bare LF": (b"POST /a HTTP/1.1\nHost: h\n\n", 400),
    "folded header": (head("X: a", " b"), 400),
    "space before colon": (head("X : a"), 400),
    "header without name": (head(": a"), 400),
    "NUL in a value": (head("X: a\x00b"), 400),
    "CR in a value": (head("X: a\rY: b"), 400),
    "no host": (head(host=False), 400),
    "two hosts": (head("Host: other"), 400),
    "two Authorization headers": (head("Authorization: Bearer a", "Authorization: Bearer b"), 400),
    "absolute target": (head(first="GET http://h/a HTTP/1.1"), 400),
    "asterisk": (head(first="OPTIONS * HTTP/1.1"), 400),
    "fragment": (head(first="GET /a#b HTTP/1.1"), 400),
    "CONNECT": (head(first="CONNECT h:1 HTTP/1.1"), 400),
    "upgrade": (head("Connection: Upgrade", "Upgrade: h2c") + b"GET / HTTP/1.1\r\n\r\n", 400),
    "upgrade with a body": (head("Connection: Upgrade", "Upgrade: h2c", "Content-Length: 1") + b"x", 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/2.0": (head(first="GET /a HTTP/2.0"), 505),
    "HTTP/0.9": (head(first="GET /a HTTP/0.9"), 505),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "unknown method": (head(first="BREW /a HTTP/1.1"), 400),
    "other expectation": (head("Expect: 200-ok", "Content-Length: 0"), 417),
    "gzip body": (head("Content-Encoding: gzip", "Content-Length: 1") + b"x", 415),
    "long body announced": (head("Content-Length: 4097"), 413),
    "long body in chunks": (head("Transfer-Encoding: chunked") + b"fff\r\n%b\r\n" % (b"x" * 4095) * 2, 413),
    "one long header": (head("X: " + "a" * 2048), 431),
    "long target": (head(first=f"GET /{'a' * 2048} HTTP/1.1"), 431),
    "many headers": (head(*[f"X{i}: a" for i in range(20)]), 431),
}


@pytest.mark.parametrize("name", REFUSED)
def test_ambiguous_or_oversized_message_is_refused_however_it_is_cut(name: str) -> None:
    data, status = REFUSED[name]
    for pieces in ([data], bytewise(data)):
        reading = read(*pieces)
        assert [error.status for error in reading.errors] == [status]
        assert reading.requests == []
        reading.reader.feed(head("Content-Length: 0"))
        assert reading.requests == [], "nothing is read after a refusal"


def test_endless_header_is_refused_before_it_ends() -> None:
    reading = read(head()[:-2] + b"X: ", *[b"a" * 500] * 5)
    assert [error.status for error in reading.errors] == [431]


def test_body_of_mostly_framing_is_refused() -> None:
    reading = read(head("Transfer-Encoding: chunked"), *[b"1;" + b"x" * 400 + b"\r\na\r\n"] * 40)
    assert [error.status for error in reading.errors] == [413]


READ: dict[str, tuple[bytes, bytes, bytes]] = {
    "length": (head("Content-Length: 3") + b"abc", b"/a", b"abc"),
    "no body": (head(), b"/a", b""),
    "chunked": (
        head("Transfer-Encoding: Chunked") + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
        b"/a",
        b"abcde",
    ),
    "trailers are dropped": (
        head("Transfer-Encoding: chunked") + b"1\r\na\r\n0\r\nX-Late: b\r\n\r\n",
        b"/a",
        b"a",
    ),
    "query": (head("Content-Length: 0", first="POST /a?b=c%20d HTTP/1.1"), b"/a?b=c%20d", b""),
    "HTTP/1.0 without host": (
        head("Content-Length: 1", first="POST /a HTTP/1.0", host=False) + b"x",
        b"/a",
        b"x",
    ),
    "blank lines before": (b"\r\n\r\n" + head("Content-Length: 1") + b"x", b"/a", b"x"),
}


@pytest.mark.parametrize("name", READ)
def test_clear_message_is_read_however_it_is_cut(name: str) -> None:
    data, target, body = READ[name]
    for pieces in ([data], bytewise(data), [data[:20], data[20:]]):
        reading = read(*pieces)
        assert reading.errors == []
        (request,) = reading.requests
        assert (request.method, request.target, request.body) == (b"POST", target, body)
        assert reading.reader.phase is Phase.IDLE
        assert all(name != b"X-Late" for name, _ in request.headers)


def test_pipelined_requests_are_read_in_order_and_a_broken_one_ends_it() -> None:
    data = head("Content-Length: 3") + b"abc" + head(first="GET /b HTTP/1.1") + b"nonsense\r\n"
    for pieces in ([data], bytewise(data)):
        reading = read(*pieces)
        assert [(r.path, r.body) for r in reading.requests] == [("/a", b"abc"), ("/b", b"")]
        assert [error.status for error in reading.errors] == [400]


def test_nothing_is_read_after_a_request_that_closes_the_connection() -> None:
    reading = read(head("Connection: close", "Content-Length: 1") + b"x" + head())
    assert len(reading.requests) == 1
    assert reading.errors == []


HOPS = [
    ("Connection: close, X-Secret", "X-Secret: 1", "Content-Length: 0"),
    ("Keep-Alive: 5", "Proxy-Connection: x", "Proxy-Authorization: y", "TE: trailers", "Trailer: z"),
    ("Host: h",),
    ("Expect: 100-continue", "Transfer-Encoding: chunked"),
    ("X-Shoal-Replica: forged", "x-shoal-anything: forged", "X-Request-Id: 7"),
]


@pytest.mark.parametrize("lines", HOPS)
def test_headers_of_one_hop_and_of_the_platform_are_not_sent_on(lines: tuple[str, ...]) -> None:
    data = head("Accept: */*", *lines, "X-Kept: Value", host="Host: h" not in lines) + b"0\r\n\r\n"
    request = read(data).requests[0]
    assert request.headers == [(b"Accept", b"*/*"), (b"X-Kept", b"Value")]


def test_a_head_for_a_replica_is_one_that_h11_reads_with_the_lines_added_by_the_router() -> None:
    request = read(head("Content-Length: 2", "X-Kept: v", first="POST /a?b HTTP/1.1") + b"{}").requests[0]
    request.request_id = b"7"
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(request.head_for(b"r:1", b"x-shoal-chain: 1;a\r\nx-shoal-timeout-ms: 5\r\n"))
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (b"POST", b"/a?b")
    assert sorted(event.headers) == [
        (b"content-length", b"2"),
        (b"host", b"r:1"),
        (b"x-kept", b"v"),
        (b"x-request-id", b"7"),
        (b"x-shoal-chain", b"1;a"),
        (b"x-shoal-timeout-ms", b"5"),
    ]


@pytest.mark.parametrize(
    ("value", "taken"),
    [("abc-123", b"abc-123"), ("a" * 129, b""), ("a b", b""), ("\xe4", b""), ("", b""), (" x ", b"x")],
)
def test_request_id_is_taken_only_when_short_and_visible(value: str, taken: bytes) -> None:
    assert read(head(f"X-Request-Id: {value}")).requests[0].request_id == taken


def test_continue_is_sent_once_when_a_body_is_awaited() -> None:
    waiting = head("Expect: 100-continue", "Content-Length: 3")
    assert read(waiting).continues == 1
    assert read(waiting, b"abc").requests[0].body == b"abc"
    assert read(head("Expect: 100-continue")).continues == 0
    assert read(head("Expect: 100-continue", "Content-Length: 3", first="POST /a HTTP/1.0")).continues == 0


def test_vetoed_request_loses_its_body_and_keeps_the_connection() -> None:
    missing = head("Content-Length: 3", first="POST /missing HTTP/1.1")
    reading = read(missing + b"abc" + head())
    refused, next_one = reading.requests
    assert isinstance(refused.refusal, PathNotFound)
    assert refused.body == b""
    assert next_one.refusal is None


def test_vetoed_request_that_waits_for_continue_is_refused_at_once() -> None:
    reading = read(head("Content-Length: 3", "Expect: 100-continue", first="POST /missing HTTP/1.1"))
    assert [error.status for error in reading.errors] == [404]
    assert reading.continues == 0


EDITS = st.lists(
    st.tuples(
        st.integers(0, 400),
        st.sampled_from([0, 1]),
        st.sampled_from([b"", b"\r", b"\n", b"\0", b" ", b"0", b":"]),
    ),
    max_size=2,
)


def mutate(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for at, removed, added in edits:
        place = at % (len(data) + 1)
        data = data[:place] + added + data[place + removed :]
    return data


Meaning = tuple[bytes, bytes, bytes, list[tuple[bytes, bytes]]]


def meanings(reading: Reading) -> list[Meaning]:
    return [
        (
            request.method,
            request.target,
            request.body,
            [(n.lower(), v.strip(b" \t")) for n, v in request.headers if n.lower().startswith(b"x-")],
        )
        for request in reading.requests
    ]


LENGTHS = st.sampled_from(
    [b"3", b"03", b"4", b"0", b"", b"+3", b" 3", b"3 ", b"3, 3", b"3\r\nContent-Length: 3"]
)
REPEATS = st.tuples(LENGTHS, st.sampled_from([b"abc", b"", b"ab", b"abcd", b"abc" + head()]), EDITS)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.sampled_from([b"Content-Length:", b"content-length: "]), st.lists(REPEATS, min_size=1, max_size=3))
def test_a_head_that_a_connection_repeats_means_what_it_means_on_a_fresh_one(
    name: bytes, repeats: list[tuple[bytes, bytes, list[tuple[int, int, bytes]]]]
) -> None:
    lines = b"POST /a HTTP/1.1\r\nHost: h\r\n%b%b\r\nX-One: 1\r\n\r\n%b"
    fed = [lines % (name, b"3", b"abc")]
    for length, body, edits in repeats:
        data = lines % (name, length, body)
        fed.append(mutate(data, edits[:1]))
        # A reader that is fed the messages in one piece knows no earlier head.
        together = read(b"".join(fed))
        reading = read(*fed)
        assert meanings(reading) == meanings(together)
        assert [error.status for error in reading.errors] == [error.status for error in together.errors]


def test_a_repeated_head_is_read_without_the_parser_and_gives_each_request_its_own_state() -> None:
    first = head("Content-Length: 3", "X-Kept: v", first="POST /a?b HTTP/1.1") + b"abc"
    second = head("Content-Length: 11", "X-Kept: v", first="POST /a?b HTTP/1.1") + b"hello world"
    one, two, three = read(first, second, first[:-1], b"d").requests
    assert one.head is two.head
    assert three.head is not one.head, "cut in two, it is the parser's"
    one.request_id = b"7"
    assert (two.body, two.request_id, three.body) == (b"hello world", b"", b"abd")


def test_a_veto_holds_for_a_repeated_head() -> None:
    missing = head("Content-Length: 3", first="POST /missing HTTP/1.1") + b"abc"
    requests = read(missing, missing).requests
    assert [type(request.refusal) for request in requests] == [PathNotFound, PathNotFound]
    assert [request.body for request in requests] == [b"", b""]
