"""What a replica's bytes mean to the router and to h11 behind it, and whether they disagree. No test by itself."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

import h11

from shoal_router import replies
from shoal_router.reply_head import ReplyHead
from shoal_router.unchunk import Unchunker
from shoal_router.upstream import UpstreamConnection

# The client gets a status line of our own: whatever bytes a replica gives as its reason, nobody reads them.
_REASON = re.compile(rb"^(HTTP/1\.[01] [0-9]{3}) [^\r\n]*")


class Wire(asyncio.Transport):
    """A socket to a replica that only remembers how it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def writelines(self, list_of_data: object) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Reply:
    """Takes one reply as exchange.py does: `passed` is what the client would have got."""

    def __init__(self) -> None:
        self.head: ReplyHead | None = None
        self.passed = b""
        self.body: list[bytes] = []  # as it came, framing and all
        self.ended = self.failed = self.kept = False

    @property
    def outcome(self) -> tuple[bool, bool, bytes]:
        return self.ended, self.failed, self.passed

    def reply_started(self, head: ReplyHead, body: bytes) -> None:
        self.head = head
        self.body.append(body)
        self.passed = (
            replies.passed_on_head(head.status, head.headers, b"", close=head.until_close, unframed=False)
            + body
        )

    def reply_data(self, data: bytes) -> None:
        self.passed += data
        self.body.append(data)

    def reply_ended(self) -> None:
        self.ended = True

    def reply_failed(self, error: Exception) -> None:
        self.failed = True

    def put(self, connection: UpstreamConnection) -> None:
        self.kept = True

    def discard(self, connection: UpstreamConnection) -> None: ...


def router_reply(pieces: Sequence[bytes]) -> Reply:
    """The reply that the router reads from a replica that sends these pieces and then closes."""
    reply, wire = Reply(), Wire()
    connection = UpstreamConnection(reply)
    connection.connection_made(wire)
    connection.send(reply, b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n", b"")
    for piece in pieces:
        if wire.closed:
            break
        if piece:
            connection.data_received(piece)
    connection.connection_lost(None)
    return reply


def h11_reply(data: bytes, *, closed: bool) -> tuple[int, bytes, bytes] | None:
    """Status, body and what is left over, as h11 reads a reply; None unless it is there as a whole."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "h"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    if closed:
        connection.receive_data(b"")
    status, body = 0, b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, bytes(body), connection.trailing_data[0]
            else:
                return None
    except h11.RemoteProtocolError:
        return None


def reply_disagreement(data: bytes, splits: Sequence[Sequence[bytes]] = ()) -> str | None:
    """What the router, its client and h11 read differently in a replica's bytes; None when nothing."""
    whole = router_reply([data])
    for pieces in splits:
        if not _same(router_reply(pieces), whole):
            return f"cut into {list(pieces)}: {router_reply(pieces).outcome}, else {whole.outcome}"
    for reply in (whole, *(router_reply(pieces) for pieces in splits)):
        if (found := _misread(reply, data)) is not None:
            return found
    return None


def unframed(pieces: Sequence[bytes]) -> bytes:
    """The body of a chunked reply as an HTTP/1.0 client gets it."""
    got = bytearray()
    unchunker = Unchunker(got.extend)
    for piece in pieces:
        unchunker.feed(piece)
    return bytes(got)


def _same(cut: Reply, whole: Reply) -> bool:
    """Cut elsewhere, a reply may show that it is broken later, or that something follows it; never be another one."""
    if whole.ended:
        return cut.outcome == whole.outcome
    return not cut.ended or (cut.head is not None and not cut.head.until_close)


def _misread(reply: Reply, data: bytes) -> str | None:
    if reply.head is None:
        return None
    closed = reply.ended and reply.head.until_close
    client = h11_reply(reply.passed, closed=closed)
    if reply.failed and client is not None:
        return f"the router calls it broken, its client reads {client} in {reply.passed!r}"
    if reply.ended:
        if client is None or client[2]:
            return f"the router calls it whole, its client reads {client} in {reply.passed!r}"
        if client[0] != reply.head.status:
            return f"the client reads status {client[0]}, the router {reply.head.status}"
        if reply.head.chunked and unframed(reply.body) != client[1]:
            return f"an HTTP/1.0 client gets {unframed(reply.body)!r}, one of HTTP/1.1 {client[1]!r}"
        oracle = h11_reply(_REASON.sub(rb"\1 X", data), closed=closed)
        if oracle is None or oracle[:2] != client[:2]:
            return f"the replica sent {oracle} in h11's eyes, the client got {client}"
    return None
