"""Pass a reply on to the client: head once, then the body's bytes as they come.

Parses nothing, retries nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from shoal_router import replies
from shoal_router.connection import ClientConnection
from shoal_router.errors import RouterError
from shoal_router.reply_head import ReplyHead
from shoal_router.unchunk import Unchunker

TAIL_PIECES: Final = 4  # usage, [DONE] and the last chunk may come in a piece each


class Relay:
    """One committed reply. `fresh` is set by every piece; whoever watches for silence clears it."""

    __slots__ = ("_client", "_close", "_head", "_unchunker", "_write", "fresh", "tail")

    def __init__(self, client: ClientConnection, head: ReplyHead, *, http10: bool) -> None:
        self._client = client
        self._close = client.closes_after_reply or head.until_close
        self._head = head
        self._unchunker = Unchunker(client.write) if http10 and head.chunked else None
        self._write = client.write if self._unchunker is None else self._unchunker.feed
        self.tail: list[bytes] = []  # the last TAIL_PIECES pieces of the body at least
        self.fresh = True

    @property
    def status(self) -> int:
        return self._head.status

    def start(self, body: bytes, added: bytes) -> None:
        """Send the head with the `added` header lines, and the first bytes of the body."""
        head = self._head
        unframed = self._unchunker is not None
        lines = replies.passed_on_head(head.status, head.headers, added, close=self._close, unframed=unframed)
        if unframed:
            self._client.write(lines)
            self._write(body)
        else:
            self._client.write(lines + body)
        self.tail.append(body)

    def piece(self, data: bytes) -> None:
        """Send the next bytes of the body."""
        self._write(data)
        self.fresh = True
        tail = self.tail
        tail.append(data)
        if len(tail) == 2 * TAIL_PIECES:
            del tail[:TAIL_PIECES]

    def finish(self) -> None:
        """The reply is complete."""
        self._client.finish(close=self._close)

    def break_off(self, error: RouterError, at_chunk_boundary: Callable[[], bool]) -> None:
        """The reply will not be completed.

        A stream says so in a last event; every client sees a cut connection.
        """
        if not self._head.event_stream or not self._at_event_boundary():
            self._client.abort()
            return
        event = replies.error_event(error)
        if self._head.until_close or self._unchunker is not None:
            self._client.write(event)
        elif at_chunk_boundary():
            self._client.write(replies.chunk(event))  # and no last chunk: the body stays unfinished
        else:
            self._client.abort()
            return
        self._client.finish(close=True)

    def _at_event_boundary(self) -> bool:
        end = b"".join(self.tail)[-4:]
        if self._head.chunked:
            end = end.removesuffix(b"\r\n")
        return not end or end.endswith(b"\n\n")
