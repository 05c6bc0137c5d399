"""Pass a resumable stream on to the client: whole events only, from as many replicas as it takes.

Decides nothing about resuming. The client's framing is the router's own, so that a replica may die anywhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from shoal_api.names import RESUME_LINE
from shoal_router import replies
from shoal_router.chunks import chunk_at
from shoal_router.connection import ClientConnection
from shoal_router.digits import number_at
from shoal_router.errors import BadReply
from shoal_router.event_reader import EventReader
from shoal_router.relay import TAIL_PIECES
from shoal_router.reply_head import ReplyHead
from shoal_router.resume import TOKENS, Progress

_TOKENS_LINE: Final = RESUME_LINE + TOKENS + b" "
_TOKENS_LINE_BYTES: Final = len(_TOKENS_LINE)
_SIZE_LINES: Final = [b"%x\r\n" % size for size in range(1024)]  # of most chunks
PING: Final = b": ping\n\n"


class ResumableRelay:
    """One client's stream. `fresh` is set by every piece; whoever watches for silence clears it.

    `last_word` is called with the error that an engine wrote in place of the rest, or with what is wrong with its bytes.
    """

    __slots__ = (
        "_before",
        "_client",
        "_close",
        "_framed",
        "_head",
        "_last_word",
        "_quick",
        "_reader",
        "fresh",
        "progress",
        "tail",
    )

    def __init__(
        self,
        client: ClientConnection,
        head: ReplyHead,
        progress: Progress,
        last_word: Callable[[bytes | BadReply], None],
        *,
        http10: bool,
    ) -> None:
        self.progress = progress
        self.fresh = True
        self.tail: deque[bytes] = deque(maxlen=TAIL_PIECES)  # the last events other than tokens
        self._client = client
        self._close = client.closes_after_reply or head.until_close
        self._head = head
        self._framed = head.chunked and not http10
        self._last_word = last_word
        self.follow(head, progress.state)

    @property
    def status(self) -> int:
        return self._head.status

    @property
    def fruitful(self) -> bool:
        """Whether a token has come from the replica that is being followed."""
        return len(self.progress.ids) > self._before

    def start(self, body: bytes, added: bytes) -> None:
        """Send the head with the `added` header lines, and the first events."""
        head = self._head
        self._client.write(
            replies.passed_on_head(
                head.status, head.headers, added, close=self._close, unframed=not self._framed
            )
        )
        self.piece(body)

    def follow(self, head: ReplyHead, state: bytes) -> None:
        """The next bytes are those of this reply, which has this state; half an event of the last one is forgotten."""
        self.progress.state = state
        self._before = len(self.progress.ids)
        self._reader = EventReader(self.progress, chunked=head.chunked)
        self._quick = self._framed and head.chunked

    def piece(self, data: bytes) -> None:
        """Take the next bytes of the reply."""
        self.fresh = True
        if self._quick and (data := self._quick_read(data)) == b"":
            return
        self._read(data)

    def _quick_read(self, data: bytes) -> bytes:
        """Pass on the chunks that hold one event of one line each, as nearly all do: they need no parser.

        Returns what is left from the first other one on.
        """
        progress = self.progress
        events: list[bytes] = []
        at, end = 0, len(data)
        while at < end:
            start, stop = chunk_at(data, at)
            if not start or not data.startswith(_TOKENS_LINE, start) or data[stop - 1] != 0x0A:
                break
            token, line_end = number_at(data, start + _TOKENS_LINE_BYTES)
            if token < 0 or data[line_end] != 0x0A:  # something else, or more than one token
                token, line_end = -1, data.find(b"\n", start)
            if data.find(b"\n", line_end + 1) != stop - 2:
                break
            if token >= 0:
                progress.ids.append(token)
                progress.stage = TOKENS
            else:
                try:
                    progress.read(data[start:line_end])
                except BadReply:
                    break  # what is wrong is told where it is read with care
            at, size = stop + 2, stop - line_end - 1
            line = _SIZE_LINES[size] if size < len(_SIZE_LINES) else b"%x\r\n" % size
            events.append(line + data[line_end + 1 : at])
        if events:
            self._client.write(events[0] if len(events) == 1 else b"".join(events))
        return data[at:]

    def ping(self) -> None:
        """Tell the client, and what stands between, that the stream is still alive."""
        self._write(PING)

    def finish(self) -> None:
        """The stream is complete."""
        if self._framed:
            self._client.write(replies.LAST_CHUNK)
        self._client.finish(close=self._close)

    def end_with(self, event: bytes) -> None:
        """The stream will not be completed: `event` says why, then the connection is cut."""
        self._write(event)
        self._client.finish(close=True)

    def _read(self, data: bytes) -> None:
        reader = self._reader
        events = reader.feed(data)
        if events:
            self.tail.extend(events[-TAIL_PIECES:])
            self._write(b"".join(events))
        self._quick = self._framed and reader.at_rest
        if reader.last_word is not None:
            self._last_word(reader.last_word)

    def _write(self, events: bytes) -> None:
        self._client.write(replies.chunk(events) if self._framed else events)
