"""Whole events out of the pieces of a resumable stream, without their `:shoal` lines. Writes to nobody.

Events are those of our own engine: they end with a blank line, and lines with a line feed.
"""

from __future__ import annotations

from typing import Final

from shoal_api.names import RESUME_LINE
from shoal_router.errors import BadReply
from shoal_router.resume import Progress
from shoal_router.unchunk import Unchunker

MAX_EVENT_BYTES: Final = 8 * 2**20  # tokens that had to wait for a slow client come in one event
_END: Final = b"\n\n"


class EventReader:
    """Reads one reply, or the rest of a stream from one more replica, and moves `progress` on.

    `last_word` is set when nothing more can be read: to the event that the engine wrote in place of the rest, which
    has no line, or to what is wrong with the reply.
    """

    __slots__ = ("_pieces", "_progress", "_seen", "_unchunker", "last_word")

    def __init__(self, progress: Progress, *, chunked: bool) -> None:
        self.last_word: bytes | BadReply | None = None
        self._progress = progress
        self._pieces = bytearray()  # of the event that is not yet whole
        self._seen = 0  # bytes of it in which no end was found
        self._unchunker = Unchunker(self._pieces.extend) if chunked else None

    @property
    def at_rest(self) -> bool:
        """Whether it stands between two events and between two chunks."""
        unchunker = self._unchunker
        return not self._pieces and unchunker is not None and unchunker.at_boundary and self.last_word is None

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are whole now, in order, comments included."""
        pieces = self._pieces
        if self._unchunker is None:
            pieces.extend(data)
        else:
            self._unchunker.feed(data)
        end = pieces.rfind(_END, max(self._seen - 1, 0)) + len(_END)
        if end < len(_END):
            self._seen = len(pieces)
            if self._seen > MAX_EVENT_BYTES:
                self.last_word = BadReply(f"an event of more than {MAX_EVENT_BYTES} bytes")
            return []
        whole = bytes(pieces[:end])
        del pieces[:end]
        self._seen = 0
        events: list[bytes] = []
        for event in whole.split(_END)[:-1]:
            if event.startswith(RESUME_LINE):
                line, _, event = event.partition(b"\n")
                try:
                    self._progress.read(line)
                except BadReply as error:
                    self.last_word = error
                    break
            elif not event.startswith(b":"):
                self.last_word = event + _END
                break
            events.append(event + _END)
        return events
