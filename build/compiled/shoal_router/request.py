"""A client's request as it is understood, and what each of its header lines means for it.

Which bytes make a request is http1.py's; what to do with it is app.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal_router.errors import BadRequest, EncodingNotSupported, ExpectationFailed, RouterError
from shoal_router.keys import Key

if TYPE_CHECKING:
    from shoal_router.rate_limits import Grant
    from shoal_router.record import Record


class Head:
    """What the head of a request says. `headers` holds end-to-end lines only, in order, ready to be sent on.

    Complete once every rule has seen its lines; not changed after that, so that equal heads may share one.
    """

    __slots__ = (
        "authorization",
        "chunked",
        "content_length",
        "credentials",
        "expects_continue",
        "headers",
        "hosts",
        "http10",
        "keep_alive",
        "lines",
        "method",
        "named_hops",
        "path",
        "request_id",
        "target",
        "trace_line",
        "traceparent",
    )

    def __init__(self, method: bytes, target: bytes, http10: bool, keep_alive: bool) -> None:
        self.method = method
        self.target = target
        self.path = target.partition(b"?")[0].decode("latin-1")
        self.http10 = http10
        self.keep_alive = keep_alive
        self.headers: list[tuple[bytes, bytes]] = []
        self.lines = b""  # the bytes of `headers`
        self.authorization = b""
        self.credentials = (
            b""  # the line of `authorization`, which is for the router unless it asks for no keys
        )
        self.request_id = b""  # of the client; empty when it gave none
        self.traceparent = ""  # of the client; empty when it gave none
        self.trace_line = b""  # its line, for an engine when the router does not trace
        self.hosts = 0
        self.content_length = 0
        self.chunked = False
        self.expects_continue = False
        self.named_hops: set[bytes] | None = None

    def apply_rules(self, lines: list[tuple[bytes, bytes]]) -> None:
        """Take in all header lines. Raises RouterError when they have no single meaning."""
        onward = self.headers
        for line in lines:
            key = line[0].lower()
            rule = RULES.get(key)
            if rule is not None:
                rule(self, *line)
            elif not key.startswith(b"x-shoal-"):  # the platform's own headers never come from outside
                onward.append(line)
        if self.hosts > 1 or (self.hosts == 0 and not self.http10):
            raise BadRequest("an HTTP/1.1 request has exactly one Host header")
        named = self.named_hops
        if named:
            self.headers = [line for line in onward if line[0].lower() not in named]
        if self.authorization and not (named and b"authorization" in named):
            self.credentials = b"authorization: %b\r\n" % self.authorization
        self.lines = b"".join([b"%b: %b\r\n" % line for line in self.headers])


class Request:
    """One request: what its head says, its body, and what the router makes of them."""

    __slots__ = (
        "authorization",
        "body",
        "grant",
        "head",
        "keep_alive",
        "key",
        "method",
        "onward",
        "path",
        "record",
        "refusal",
        "request_id",
        "tenant",
    )

    def __init__(self, head: Head, body: bytes = b"") -> None:
        self.head = head
        self.method = head.method
        self.path = head.path
        self.keep_alive = head.keep_alive
        self.authorization = head.authorization
        self.request_id = head.request_id
        self.body = body
        self.refusal: RouterError | None = None
        self.key: Key | None = None  # that it was sent with; None when the router asks for none
        self.tenant = ""
        self.grant: Grant | None = None  # of its key's limits, while it lasts
        self.record: Record | None = None  # None unless somebody wants to know what becomes of it
        self.onward = b""  # header lines for the engine about who asks, set with the key

    @property
    def target(self) -> bytes:
        return self.head.target

    @property
    def http10(self) -> bool:
        return self.head.http10

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return self.head.headers

    def head_for(self, authority: bytes, extra: bytes = b"") -> bytes:
        """The head to send to a replica: rebuilt, one framing, nothing of the client's connection left.

        `extra` holds whole header lines, each with its line end: what the router tells the engine.
        """
        head = self.head
        return b"%b %b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b%b%b\r\n" % (
            head.method,
            head.target,
            authority,
            len(self.body),
            self.request_id,
            self.onward,
            extra,
            head.lines,
        )


def _host(head: Head, name: bytes, value: bytes) -> None:
    head.hosts += 1


def _length(head: Head, name: bytes, value: bytes) -> None:
    head.content_length = int(value)


def _transfer_encoding(head: Head, name: bytes, value: bytes) -> None:
    if head.http10 or value.strip(b" \t").lower() != b"chunked":
        raise BadRequest("the only transfer coding is 'chunked', in HTTP/1.1; send one or a Content-Length")
    head.chunked = True


def _content_encoding(head: Head, name: bytes, value: bytes) -> None:
    if value.strip(b" \t").lower() not in (b"", b"identity"):
        raise EncodingNotSupported("send the JSON body uncompressed, without Content-Encoding")


def _expect(head: Head, name: bytes, value: bytes) -> None:
    if value.strip(b" \t").lower() != b"100-continue":
        raise ExpectationFailed("the only expectation served is 100-continue; leave the Expect header out")
    head.expects_continue = not head.http10


def _connection(head: Head, name: bytes, value: bytes) -> None:
    names = {token.strip(b" \t").lower() for token in value.split(b",")} - {b"close", b"keep-alive", b""}
    if names:
        head.named_hops = names | (head.named_hops or set())


def _authorization(head: Head, name: bytes, value: bytes) -> None:
    if head.authorization:
        raise BadRequest("send one Authorization header, not several")
    head.authorization = value


def _request_id(head: Head, name: bytes, value: bytes) -> None:
    value = value.strip(b" \t")
    # An id is echoed and logged: only a short visible one is taken over, else the router makes its own.
    if 0 < len(value) <= 128 and all(0x21 <= byte <= 0x7E for byte in value):
        head.request_id = value


def _traceparent(head: Head, name: bytes, value: bytes) -> None:
    # Two of them are none (W3C Trace Context 3.2).
    head.trace_line = b"" if head.traceparent else b"traceparent: %b\r\n" % value
    head.traceparent = "-" if head.traceparent else value.decode("latin-1")


def _hop(head: Head, name: bytes, value: bytes) -> None:
    """For this connection only (RFC 9110 7.6.1): never sent on."""


RULES: dict[bytes, Callable[[Head, bytes, bytes], None]] = {
    b"host": _host,
    b"content-length": _length,
    b"transfer-encoding": _transfer_encoding,
    b"content-encoding": _content_encoding,
    b"expect": _expect,
    b"connection": _connection,
    b"authorization": _authorization,
    b"x-request-id": _request_id,
    b"traceparent": _traceparent,
    b"keep-alive": _hop,
    b"proxy-connection": _hop,
    b"proxy-authenticate": _hop,
    b"proxy-authorization": _hop,
    b"te": _hop,
    b"trailer": _hop,
    b"upgrade": _hop,
}
