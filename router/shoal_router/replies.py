"""Heads of replies, as bytes: of the router's own answers and of replies passed on. Pure; sends nothing."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from shoal_router.errors import MethodNotAllowed, RouterError, Unauthorized

JSON: Final = b"application/json"
TEXT: Final = b"text/plain; charset=utf-8"
PROMETHEUS: Final = b"text/plain; version=0.0.4; charset=utf-8"

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE: Final = b"connection: close\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}

# Headers of one connection only (RFC 9110 7.6.1), and those that the router sets itself. The reply's framing
# (content-length, transfer-encoding) stays: the framed bytes are passed on as they are.
_NOT_PASSED_ON: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"te",
        b"upgrade",
        b"x-request-id",
        b"x-shoal-replica",
        b"x-shoal-resume",
    )
)
_NOT_PASSED_ON_UNFRAMED: Final = _NOT_PASSED_ON | {b"transfer-encoding", b"trailer"}

Header = tuple[bytes, bytes]


def status_line(status: int) -> bytes:
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status


def own_reply(
    status: int,
    body: bytes,
    content_type: bytes,
    headers: Iterable[Header] = (),
    *,
    close: bool,
    head_only: bool,
) -> bytes:
    """A complete reply of the router itself."""
    parts = [
        status_line(status),
        b"content-type: %b\r\ncontent-length: %d\r\n" % (content_type, len(body)),
        *[b"%b: %b\r\n" % header for header in headers],
        CLOSE if close else b"",
        b"\r\n",
        b"" if head_only else body,
    ]
    return b"".join(parts)


def error_headers(error: RouterError) -> tuple[Header, ...]:
    """The headers that belong to an error."""
    if error.retry_after_s is not None:
        return ((b"retry-after", b"%d" % error.retry_after_s), *error.headers)
    if isinstance(error, MethodNotAllowed):
        return ((b"allow", error.allow.encode()),)
    return ((b"www-authenticate", b"Bearer"),) if isinstance(error, Unauthorized) else ()


def passed_on_head(
    status: int, headers: Iterable[Header], added: bytes, *, close: bool, unframed: bool
) -> bytes:
    """The head of a replica's reply for the client.

    `added` is whole header lines; `unframed` drops chunking.
    """
    dropped = _NOT_PASSED_ON_UNFRAMED if unframed else _NOT_PASSED_ON
    lines = b"".join([b"%b: %b\r\n" % header for header in headers if header[0] not in dropped])
    return b"%b%b%b%b\r\n" % (status_line(status), lines, added, CLOSE if close else b"")


def error_event(error: RouterError) -> bytes:
    """A server-sent event that tells a client in the middle of a stream what went wrong."""
    return b"data: %b\n\n" % error.body()


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
