"""Take the chunk framing off a reply's body, for HTTP/1.0 clients and for the router itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import httptools

_CHUNKED_HEAD: Final = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Unchunker:
    """Feed it framed bytes; `write` gets the bytes of the body. The framing has been checked before."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.on_body = write  # looked up by the parser, which calls it for each piece
        self._between_chunks = True
        self._ends_line = True
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(_CHUNKED_HEAD)

    @property
    def at_boundary(self) -> bool:
        """Whether the next byte is the first of a chunk's size."""
        return self._between_chunks and self._ends_line

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)
        self._ends_line = data.endswith(b"\n")  # else the beginning of a size may have come

    # Callbacks of httptools

    def on_chunk_header(self) -> None:
        self._between_chunks = False

    def on_chunk_complete(self) -> None:
        self._between_chunks = True
