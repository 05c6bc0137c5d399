"""What bytes from a client mean: strict HTTP/1.1 requests, each with exactly one reading or a refusal.

llhttp (httptools) already refuses Content-Length beside Transfer-Encoding, repeated or signed lengths, folded
lines, bare line feeds and broken chunks; this file adds what it leaves open: caps, versions, hosts, codings,
targets. It owns no socket and no clock; connection.py feeds it. Trailers are read and dropped, as RFC 9110
6.5.1 allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import httptools

from shoal_router.errors import BadRequest, BodyTooLarge, HeadTooLarge, RouterError, VersionNotSupported
from shoal_router.repeated_head import RepeatedHead, repeated_head
from shoal_router.request import Head, Request

FRAMING: Final = frozenset((b"content-length", b"transfer-encoding"))


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Caps on one request; all sizes in bytes."""

    head_bytes: int = 16 * 1024
    header_count: int = 100
    body_bytes: int = 8 * 1024 * 1024

    @property
    def raw_body_bytes(self) -> int:
        """Most bytes on the wire for one body: chunk framing may double it, not more."""
        return 2 * self.body_bytes + self.head_bytes


class Phase(IntEnum):
    """Where in a message the reader stands; connection.py hangs its deadlines on it."""

    IDLE = 0
    HEAD = 1
    BODY = 2


class RequestReader:
    """Turns fed bytes into `deliver(request)` calls, in order, and at most one final `refuse(error)`.

    `vet(request)` is called when a head is complete and may raise a RouterError: the body is then discarded
    as it arrives and the request is delivered with `refusal` set. `send_continue()` is called when the client
    waits for it.
    """

    def __init__(
        self,
        limits: HttpLimits,
        *,
        vet: Callable[[Request], None],
        deliver: Callable[[Request], None],
        refuse: Callable[[RouterError], None],
        send_continue: Callable[[], None],
    ) -> None:
        self.phase = Phase.IDLE
        self.dead = False
        self._limits = limits
        self._vet = vet
        self._deliver = deliver
        self._refuse = refuse
        self._send_continue = send_continue
        self._parser = httptools.HttpRequestParser(self)
        self._lines: list[tuple[bytes, bytes]] = []
        self._head_lines = 0  # of these; the others are trailers
        self._target = b""
        self._request: Request | None = None
        self._last: Head | None = None  # of the last request in the read in progress
        self._repeated: RepeatedHead | None = None
        self._parts: list[bytes] = []
        self._body_bytes = 0
        self._read_bytes = 0  # of the read in progress
        self._first_bytes = 0  # of the read in which the current message began: an upper bound of its share
        self._later_bytes = 0  # of the reads after that: all belong to the current message

    def feed(self, data: bytes) -> None:
        """Read on; after a refusal, or a request that closes the connection, bytes are ignored."""
        if self.dead:
            return
        begins = self.phase is Phase.IDLE
        if begins and self._repeated is not None:
            request = self._repeated.read(data, self._limits.body_bytes)
            if request is not None:
                self._take_repeated(request)
                return
        self._read_bytes = len(data)
        self._later_bytes += self._read_bytes
        try:
            self._parser.feed_data(data)
            last, self._last = self._last, None
            if self.phase:
                self._check_unfinished()
            elif begins and last is not None:
                self._repeated = repeated_head(data, last)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, RouterError):
                raise
            self._die(cause)
        except httptools.HttpParserUpgrade:
            self._die(BadRequest("CONNECT and protocol upgrades are not served here"))
        except httptools.HttpParserError as error:
            self._die(BadRequest(f"malformed HTTP: {error}"))
        except RouterError as error:
            self._die(error)

    @property
    def unfinished_bytes(self) -> int:
        """Of a body that is not complete yet."""
        return self._body_bytes if self.phase is Phase.BODY and self._parts else 0

    def give_up(self) -> None:
        """Read no more, and keep nothing of what has come."""
        self.dead = True
        self._parts = []

    def _take_repeated(self, request: Request) -> None:
        """A whole message whose head is the last one's: the parser stands between two messages and stays there."""
        try:
            self._vet(request)
        except RouterError as error:
            request.refusal = error
            request.body = b""
        self._deliver(request)

    def _die(self, error: RouterError) -> None:
        if not self.dead:
            self.dead = True
            self._refuse(error)

    def _check_unfinished(self) -> None:
        if self.phase == Phase.HEAD and self._later_bytes > self._limits.head_bytes:
            raise self._head_too_large()
        if self._later_bytes > self._limits.raw_body_bytes:
            raise BodyTooLarge("the chunked body is mostly framing; send larger chunks or a Content-Length")

    def _head_too_large(self) -> HeadTooLarge:
        limits = self._limits
        return HeadTooLarge(f"the head may have {limits.head_bytes} bytes in {limits.header_count} lines")

    # Callbacks of httptools, in the order in which they fire.

    def on_message_begin(self) -> None:
        self.phase = Phase.HEAD
        self._lines = []
        self._target = b""
        self._first_bytes = self._read_bytes
        self._later_bytes = 0

    def on_url(self, piece: bytes) -> None:
        self._target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise VersionNotSupported(f"HTTP/{version} is not served; use HTTP/1.1")
        if parser.should_upgrade():
            raise BadRequest("CONNECT and protocol upgrades are not served here")
        self._check_head_size()
        if not self._target.startswith(b"/") or b"#" in self._target:
            raise BadRequest("the request target must be a path, as in 'POST /v1/chat/completions HTTP/1.1'")
        http10 = version == "1.0"
        head = Head(parser.get_method(), self._target, http10, parser.should_keep_alive() and not http10)
        head.apply_rules(self._lines)
        if head.content_length > self._limits.body_bytes:
            raise BodyTooLarge(f"the body may have {self._limits.body_bytes} bytes; shorten the prompt")
        request = self._request = Request(head)
        self._head_lines = len(self._lines)
        self._body_bytes = 0
        self._parts = []
        self.phase = Phase.BODY
        try:
            self._vet(request)
        except RouterError as error:
            if head.expects_continue:
                raise
            request.refusal = error
        if head.expects_continue and (head.chunked or head.content_length):
            self._send_continue()

    def _check_head_size(self) -> None:
        limits = self._limits
        too_long = self._first_bytes + self._later_bytes > limits.head_bytes and (
            len(self._target) + sum(len(name) + len(value) + 4 for name, value in self._lines)
            > limits.head_bytes
        )
        if too_long or len(self._lines) > limits.header_count:
            raise self._head_too_large()

    def on_body(self, piece: bytes) -> None:
        self._body_bytes += len(piece)
        if self._body_bytes > self._limits.body_bytes:
            raise BodyTooLarge(f"the body may have {self._limits.body_bytes} bytes; shorten the prompt")
        if self._request is not None and self._request.refusal is None:
            self._parts.append(piece)

    def on_message_complete(self) -> None:
        request = self._request
        if request is None or self.dead:
            return
        if request.head.chunked and any(
            name.lower() in FRAMING for name, _ in self._lines[self._head_lines :]
        ):
            raise BadRequest("framing in a trailer")
        self._request = None
        self.phase = Phase.IDLE
        request.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        self._last = request.head
        if not request.keep_alive:
            self.dead = True  # whatever follows belongs to nobody
        self._deliver(request)
