"""Take the chunk framing off a reply's body, for HTTP/1.0 clients and for the router itself."""

from __future__ import annotations

from collections.abc import Callable

import httptools

_CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Unchunker:
    """Feed it framed bytes; `write` gets the bytes of the body. The framing has been checked before."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.on_body = write  # looked up by the parser, which calls it for each piece
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(_CHUNKED_HEAD)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)
