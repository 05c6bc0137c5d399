"""A reply that may be a replica's refusal before any work: withheld until it is whole, then judged. Sends nothing."""

from __future__ import annotations

from typing import Final

from shoal_router.failure import Failure, read_last_word
from shoal_router.reply_head import ReplyHead

MAX_BYTES: Final = 64 * 1024


def may_be_refusal(head: ReplyHead) -> bool:
    """A 429 without the engine's word is somebody's limit for this client: not to be got round."""
    return head.status == 503 or (head.status == 429 and head.not_started)


class Refusal:
    """The reply so far."""

    __slots__ = ("_pieces", "head")

    def __init__(self, head: ReplyHead, body: bytes) -> None:
        self.head = head
        self._pieces = [body]

    @property
    def body(self) -> bytes:
        return b"".join(self._pieces)

    def add(self, data: bytes) -> bool:
        """More of the body; returns whether it may still be a refusal, which is short."""
        self._pieces.append(data)
        return sum(map(len, self._pieces)) <= MAX_BYTES

    def failure(self) -> Failure | None:
        """What the whole reply means; None when it is for the client after all."""
        if self.head.status == 429:
            return Failure.FULL
        # Without that word an engine has died with the request, perhaps of it.
        return Failure.REFUSED if self.head.not_started else read_last_word(self.body)
