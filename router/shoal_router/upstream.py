"""Connections to replicas: send one request, hand its reply on as the bytes that came.

Decides nothing about retries. llhttp reads along only to learn the status, the headers and where the reply
ends; the body is never rebuilt, and ordinary chunks in the midst of it are not even parsed (chunks.py). A reply that is
not exactly one HTTP reply (two of them, an upgrade, broken chunks) is an error and taints its connection.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, cast

import httptools

from shoal_router.chunks import whole_chunks
from shoal_router.errors import BadReply
from shoal_router.http1 import FRAMING
from shoal_router.reply_head import ReplyHead

MAX_REPLY_HEAD_BYTES: Final = 64 * 1024
LONGEST_NUMBER: Final = 18  # digits that every client's parser takes


class ReplySink(Protocol):
    """Whoever sent a request and takes its reply.

    After `reply_ended` or `reply_failed` nothing more comes.
    """

    def reply_started(self, head: ReplyHead, body: bytes) -> None:
        """The head, and the framed body bytes that came with it."""

    def reply_data(self, data: bytes) -> None:
        """Further bytes of the body, framed as the replica framed them."""

    def reply_ended(self) -> None: ...

    def reply_failed(self, error: Exception) -> None: ...


_UNCONNECTED: Final = asyncio.Transport()


class Keeper(Protocol):
    """Where a connection goes between two requests."""

    def put(self, connection: UpstreamConnection) -> None: ...

    def discard(self, connection: UpstreamConnection) -> None: ...


class UpstreamConnection(asyncio.Protocol):
    """One connection to a replica, with at most one request on it; without a keeper, for one request."""

    def __init__(self, keeper: Keeper | None) -> None:
        self._keeper = keeper
        self._transport: asyncio.Transport = _UNCONNECTED
        self._parser = httptools.HttpResponseParser(self)
        self._sink: ReplySink | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._head = b""  # raw bytes until the head is complete
        self._reply: ReplyHead | None = None
        self._started = False  # the sink has seen the head
        self._between_chunks = False  # of the reply, and so is the parser
        self._complete = self._reusable = self._paused = False
        self._length = self._body_bytes = 0  # announced by Content-Length; received
        self._tail = b""  # the last five bytes of the body at least
        self.idle_since = 0.0

    @property
    def usable(self) -> bool:
        return not self._transport.is_closing()

    def send(self, sink: ReplySink, head: bytes, body: bytes) -> None:
        """Send a request; `sink` gets the reply."""
        self._sink = sink
        self._head = b""
        self._started = self._complete = self._between_chunks = False
        self._reply = None
        self._transport.writelines((head, body))

    def abort(self) -> None:
        """Cut the connection: the replica notices at once and stops computing.

        The sink hears nothing more.
        """
        self._sink = None
        self._transport.abort()

    def close(self) -> None:
        self._sink = None
        if self._transport is not _UNCONNECTED:
            self._transport.close()

    def pause(self) -> None:
        """Read no more: the reply waits in the replica's socket, not here."""
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def at_chunk_boundary(self) -> bool:
        """Whether a chunked reply, cut off here, stands between two chunks. Ends the use of this connection.

        Asks the parser instead of watching every chunk: only between two chunks do the bytes of a last chunk
        end the reply.
        """
        if not self._started or self._complete:
            return False
        try:
            self._parser.feed_data(b"0\r\n\r\n")
        except httptools.HttpParserError:
            return False
        return self._complete

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._keeper is not None:
            self._keeper.discard(self)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        if self._started and exc is None and self._reply is not None and self._reply.until_close:
            sink.reply_ended()
        else:
            sink.reply_failed(exc or ConnectionResetError("the replica closed the connection"))

    def data_received(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:  # bytes that nobody asked for
            self.abort()
            return
        if self._between_chunks:
            if whole_chunks(data):  # the parser would come to stand where it stands
                sink.reply_data(data)
                return
            self._between_chunks = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(sink, BadReply(f"the replica broke HTTP: {error.__context__ or error}"))
            return
        if not self._started:
            self._begin(sink, data)
            return
        self._body_bytes += len(data)
        self._tail = data if len(data) > 4 else (self._tail + data)[-5:]
        if not self._complete:
            sink.reply_data(data)
        elif self._has_stray():
            self._fail(sink, BadReply("bytes after the end of the reply"))
        else:
            sink.reply_data(data)
            if self._sink is sink:
                self._end(sink)

    def _begin(self, sink: ReplySink, data: bytes) -> None:
        head = self._head + data if self._head else data
        reply = self._reply
        if reply is None:
            self._head = head
            if len(head) > MAX_REPLY_HEAD_BYTES:
                self._fail(sink, BadReply("the head of the replica's reply is too large"))
            return
        self._head = b""
        self._tail = body = head[head.index(b"\r\n\r\n") + 4 :]
        self._body_bytes = len(body)
        if not head.startswith(b"HTTP/1."):  # llhttp takes RTSP's name as well
            self._fail(sink, BadReply("the reply does not begin with HTTP/1"))
        elif self._complete and self._has_stray():
            self._fail(sink, BadReply("bytes after the end of the reply"))
        else:
            self._started = True
            self._between_chunks = reply.chunked and whole_chunks(body)
            sink.reply_started(reply, body)
            if self._complete and self._sink is sink:
                self._end(sink)

    def _has_stray(self) -> bool:
        """Whether line ends follow the complete reply: llhttp skips them, but a client may choke on them."""
        reply = self._reply
        assert reply is not None
        if reply.chunked:  # its own end is a blank line, and nothing but line ends can follow
            return self._tail[-4:] != b"\r\n\r\n" or self._tail[-5:-4] in b"\r\n"
        return self._body_bytes != self._length

    def _end(self, sink: ReplySink) -> None:
        self._sink = None
        if self._paused:
            self.resume()
        if self._reusable and self._keeper is not None:
            self._keeper.put(self)
        else:
            self._transport.close()
        sink.reply_ended()

    def _fail(self, sink: ReplySink, error: Exception) -> None:
        self.abort()
        sink.reply_failed(error)

    # Callbacks of httptools

    def on_message_begin(self) -> None:
        if self._complete:
            raise BadReply("more than one reply to one request")
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            raise BadReply(f"interim status {status} that nobody asked for")
        named = dict(self._headers)
        chunked = b"transfer-encoding" in named
        if chunked:
            codings = [value.lower() for name, value in self._headers if name == b"transfer-encoding"]
            if codings != [b"chunked"]:
                raise BadReply("a transfer coding other than 'chunked'")
        until_close = not chunked and b"content-length" not in named and status not in (204, 304)
        length = named.get(b"content-length", b"0")
        if len(length) > LONGEST_NUMBER:
            raise BadReply("a Content-Length of too many digits")
        self._length = 0 if status in (204, 304) else int(length)
        content_type = named.get(b"content-type", b"")
        self._reply = ReplyHead(status, self._headers, content_type, chunked, until_close)
        self._headers = []  # a trailer is part of the body's bytes, not of the head

    def on_message_complete(self) -> None:
        if self._headers and any(name in FRAMING for name, _ in self._headers):
            raise BadReply("framing in a trailer")
        self._complete = True
        self._reusable = self._parser.should_keep_alive()
