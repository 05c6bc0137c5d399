"""A client's request as it is understood, and what each of its header lines means for it.

Which bytes make a request is http1.py's; what to do with it is app.py's.
"""

from __future__ import annotations

from collections.abc import Callable

from shoal_router.errors import BadRequest, EncodingNotSupported, ExpectationFailed, RouterError


class Request:
    """One complete request. `headers` holds end-to-end lines only, in order, ready to be sent on."""

    __slots__ = (
        "authorization",
        "body",
        "chunked",
        "content_length",
        "expects_continue",
        "headers",
        "hosts",
        "http10",
        "keep_alive",
        "method",
        "named_hops",
        "path",
        "refusal",
        "request_id",
        "target",
    )

    def __init__(self, method: bytes, target: bytes, http10: bool, keep_alive: bool) -> None:
        self.method = method
        self.target = target
        self.path = target.partition(b"?")[0].decode("latin-1")
        self.http10 = http10
        self.keep_alive = keep_alive
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.authorization = b""
        self.request_id = b""
        self.hosts = 0
        self.content_length = 0
        self.chunked = False
        self.expects_continue = False
        self.named_hops: set[bytes] | None = None
        self.refusal: RouterError | None = None

    def head_for(self, authority: bytes, extra: bytes = b"") -> bytes:
        """The head to send to a replica: rebuilt, one framing, nothing of the client's connection left.

        `extra` holds whole header lines, each with its line end: what the router tells the engine.
        """
        return b"%b %b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b%b\r\n" % (
            self.method,
            self.target,
            authority,
            len(self.body),
            self.request_id,
            extra,
            b"".join([b"%b: %b\r\n" % line for line in self.headers]),
        )


def _host(request: Request, name: bytes, value: bytes) -> None:
    request.hosts += 1


def _length(request: Request, name: bytes, value: bytes) -> None:
    request.content_length = int(value)


def _transfer_encoding(request: Request, name: bytes, value: bytes) -> None:
    if request.http10 or value.strip(b" \t").lower() != b"chunked":
        raise BadRequest("the only transfer coding is 'chunked', in HTTP/1.1; send one or a Content-Length")
    request.chunked = True


def _content_encoding(request: Request, name: bytes, value: bytes) -> None:
    if value.strip(b" \t").lower() not in (b"", b"identity"):
        raise EncodingNotSupported("send the JSON body uncompressed, without Content-Encoding")


def _expect(request: Request, name: bytes, value: bytes) -> None:
    if value.strip(b" \t").lower() != b"100-continue":
        raise ExpectationFailed("the only expectation served is 100-continue; leave the Expect header out")
    request.expects_continue = not request.http10


def _connection(request: Request, name: bytes, value: bytes) -> None:
    names = {token.strip(b" \t").lower() for token in value.split(b",")} - {b"close", b"keep-alive", b""}
    if names:
        request.named_hops = names | (request.named_hops or set())


def _authorization(request: Request, name: bytes, value: bytes) -> None:
    if request.authorization:
        raise BadRequest("send one Authorization header, not several")
    request.authorization = value
    request.headers.append((name, value))


def _request_id(request: Request, name: bytes, value: bytes) -> None:
    value = value.strip(b" \t")
    # An id is echoed and logged: only a short visible one is taken over, else the router makes its own.
    if 0 < len(value) <= 128 and all(0x21 <= byte <= 0x7E for byte in value):
        request.request_id = value


def _hop(request: Request, name: bytes, value: bytes) -> None:
    """For this connection only (RFC 9110 7.6.1): never sent on."""


RULES: dict[bytes, Callable[[Request, bytes, bytes], None]] = {
    b"host": _host,
    b"content-length": _length,
    b"transfer-encoding": _transfer_encoding,
    b"content-encoding": _content_encoding,
    b"expect": _expect,
    b"connection": _connection,
    b"authorization": _authorization,
    b"x-request-id": _request_id,
    b"keep-alive": _hop,
    b"proxy-connection": _hop,
    b"proxy-authenticate": _hop,
    b"proxy-authorization": _hop,
    b"te": _hop,
    b"trailer": _hop,
    b"upgrade": _hop,
}
