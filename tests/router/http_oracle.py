"""What bytes mean to the router, to h11 and to an engine's parser, and whether they disagree. No test by itself.

Used by test_http_oracle.py (hypothesis) and benchmarks/router/fuzz_http.py (atheris). Forgiven is only what cannot
make two parties read different messages; `FORGIVEN` says why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import h11
import httptools

from shoal_router.errors import RouterError
from shoal_router.http1 import HttpLimits, RequestReader
from shoal_router.request import RULES, Request

Header = tuple[bytes, bytes]
LIMITS = HttpLimits()
REPLICA = b"replica:8000"


@dataclass(frozen=True, slots=True)
class Message:
    """One request as somebody reads it; header names in lower case, values without blanks around them."""

    method: bytes
    target: bytes
    body: bytes
    headers: tuple[Header, ...]


@dataclass
class Reading:
    """What a RequestReader made of bytes."""

    requests: list[Request] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        return [
            Message(r.method, r.target, r.body, tuple((n.lower(), v.strip(b" \t")) for n, v in r.headers))
            for r in self.requests
        ]


def router_reading(pieces: Iterable[bytes], limits: HttpLimits = LIMITS) -> Reading:
    """The requests that the router accepts, and the status of its refusal if there is one."""
    reading = Reading()

    def refuse(error: RouterError) -> None:
        reading.statuses.append(error.status)

    reader = RequestReader(
        limits,
        vet=lambda request: None,
        deliver=reading.requests.append,
        refuse=refuse,
        send_continue=lambda: None,
    )
    for piece in pieces:
        reader.feed(piece)
    return reading


def onward(requests: Iterable[Request]) -> bytes:
    """All bytes that a replica receives for these requests, one after another on one connection."""
    sent = b""
    for request in requests:
        request.request_id = request.request_id or b"id"
        sent += request.head_for(REPLICA) + request.body
    return sent


def end_to_end(headers: Iterable[Header]) -> tuple[Header, ...]:
    """The headers that a proxy has to send on (RFC 9110 7.6.1), less those that the router sets itself."""
    listed = [(name.lower(), value.strip(b" \t")) for name, value in headers]
    named = {
        token.strip(b" \t").lower() for n, v in listed if n == b"connection" for token in v.split(b",")
    } - {b"close", b"keep-alive"}
    dropped = RULES.keys() | named
    return tuple(
        (name, value) for name, value in listed if name not in dropped and not name.startswith(b"x-shoal-")
    )


# What the router reads and h11 does not, undone so that h11 can be asked for the rest.
FORGIVEN: dict[str, Callable[[bytes], bytes]] = {
    # llhttp skips further spaces around the target. What is sent on has one on each side.
    "several spaces in the request line": lambda data: re.sub(
        rb"^([A-Z-]+) +([^ \r\n]+) +(?=[A-Z])", rb"\1 \2 ", data
    ),
    # llhttp takes the methods it knows under RTSP's name as well and does not tell. What is sent on is HTTP.
    "RTSP's name in the request line": lambda data: re.sub(rb"^([^\r\n]*) RTSP/", rb"\1 HTTP/", data),
    # The same with Icecast's.
    "ICE's name in the request line": lambda data: re.sub(rb"^([^\r\n]*) ICE/", rb"\1 HTTP/", data),
    # h11 caps numbers at 20 digits, leading zeros included. What is sent on has a new Content-Length.
    "leading zeros of a length": lambda data: re.sub(
        rb"(?i)(\r\ncontent-length:[ \t]*)0+(?=[0-9])", rb"\1", data
    ),
    "leading zeros of a chunk's size": lambda data: re.sub(
        rb"(?<=\r\n)0{8,}(?=[0-9A-Fa-f]+[;\r])", b"", data
    ),
}


def h11_reading(data: bytes, *, forgiving: bool) -> tuple[list[Message], bytes]:
    """The complete requests that h11 finds before it objects, and what is left then."""
    messages: list[Message] = []
    while data:
        # RFC 9112 2.2: blank lines before a request are ignored; h11 leaves that to its user.
        data = data.lstrip(b"\r\n")
        found = _first_message(data)
        if found is None and forgiving:
            for undo in FORGIVEN.values():
                data = undo(data)
            found = _first_message(data)
        if found is None:
            return messages, data
        message, data, closes = found
        messages.append(message)
        if closes:
            return messages, b""
    return messages, data


def _first_message(data: bytes) -> tuple[Message, bytes, bool] | None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    request, body = None, b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                break
            else:
                return None
    except h11.RemoteProtocolError:
        return None
    message = Message(request.method, request.target, bytes(body), end_to_end(request.headers))
    return message, connection.trailing_data[0], connection.our_state is h11.MUST_CLOSE


class EngineParser:
    """llhttp with the leniencies that uvicorn, and with it the engine, gives it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.unfinished = False
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._target = self._body = b""
        self._headers: list[Header] = []

    def read(self, data: bytes) -> list[Message] | None:
        """The complete requests in `data`; None when something in it is broken or left over."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return None
        return None if self.unfinished else self.messages

    def on_message_begin(self) -> None:
        self.unfinished = True
        self._target = self._body = b""
        self._headers = []

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.unfinished = False
        headers = end_to_end(self._headers)
        self.messages.append(Message(self._parser.get_method(), self._target, self._body, headers))


def disagreement(data: bytes, splits: Sequence[Sequence[bytes]] = ()) -> str | None:
    """What two parties read differently in a client's bytes; None when nothing.

    `splits` are ways in which `data` might arrive in pieces.
    """
    reading = router_reading([data])
    ours = reading.messages
    for pieces in splits:
        cut = router_reading(pieces)
        if (cut.messages, cut.statuses) != (ours, reading.statuses):
            return f"cut into {list(pieces)}: {cut.messages} {cut.statuses}, else {ours} {reading.statuses}"
    if not ours:
        return None
    theirs, _ = h11_reading(data, forgiving=True)
    if ours != theirs[: len(ours)]:
        return f"of the client's bytes the router reads {ours}, h11 {theirs}"
    sent = onward(reading.requests)
    if (h11_reading(sent, forgiving=False)) != (ours, b""):
        return f"the router means {ours}, h11 reads {sent!r} otherwise"
    if EngineParser().read(sent) != ours:
        return f"the router means {ours}, the engine's parser reads {sent!r} otherwise"
    return None
