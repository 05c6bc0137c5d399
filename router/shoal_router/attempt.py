"""One try at one replica: take or open a connection, send the request, hand the reply to its owner.

Repeats nothing. Two kinds of reply are withheld: what may be a refusal before any work, until it is whole and can be
judged; and the head of an event stream without an event, for many engines send it before they have room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from shoal_router.errors import BadReply
from shoal_router.failure import Failure
from shoal_router.placement import Placement
from shoal_router.refusal import Refusal, may_be_refusal
from shoal_router.reply_head import ReplyHead
from shoal_router.retry import STALE_WITHIN_S
from shoal_router.upstream import UpstreamConnection


class Owner(Protocol):
    """Whose request it is. Hears `attempt_failed`, or `reply_began` and then `reply_ended` or `reply_broke`."""

    blocked: bool  # whether the reply has to wait for the client

    def attempt_failed(self, failure: Failure, cause: Exception | None = None) -> None:
        """Nothing of a reply came, or one that says that nothing was done."""

    def reply_began(self, head: ReplyHead, body: bytes) -> Callable[[bytes], None]:
        """A reply worth passing on. Returns what takes its further bytes."""

    def reply_ended(self) -> None: ...

    def reply_broke(self, error: Exception) -> None: ...


class Attempt:
    """One request on one replica: the sink of its upstream connection. `owner` may change while it lasts."""

    __slots__ = (
        "_connecting",
        "_connection",
        "_head",
        "_now",
        "_passes",
        "_refusal",
        "_reused",
        "owner",
        "placement",
        "sent_s",
    )

    def __init__(self, owner: Owner, placement: Placement, now: Callable[[], float]) -> None:
        self.owner = owner
        self.placement = placement
        self.sent_s = 0.0
        self._now = now
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._reused = False
        self._refusal: Refusal | None = None  # may yet be repeated elsewhere
        self._head: ReplyHead | None = None  # of an event stream without an event
        self._passes: Callable[[bytes], None] | None = None  # takes the reply's bytes once it has begun

    @property
    def sent(self) -> bool:
        """Whether it has come as far as a connection."""
        return self._connection is not None

    @property
    def begun(self) -> bool:
        """Whether its reply is being passed on."""
        return self._passes is not None

    @property
    def name(self) -> str:
        return self.placement.endpoint.name

    def send(self, head: bytes, body: bytes, *, fresh: bool) -> None:
        """Send a request, on a new connection when it is to be `fresh`."""
        pool = self.placement.endpoint.pool
        connection = None if fresh else pool.take(self._now())
        if connection is not None:
            self._send(connection, head, body, reused=True)
        else:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(head, body))

    def abort(self) -> None:
        """Cut the connection: the replica stops computing, and nothing more is heard of it."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.abort()

    def pause(self) -> None:
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    def at_chunk_boundary(self) -> bool:
        """Whether a broken reply was cut between two chunks. Ends the use of its connection."""
        return self._connection is not None and self._connection.at_chunk_boundary()

    async def _connect(self, head: bytes, body: bytes) -> None:
        try:
            connection = await self.placement.endpoint.pool.connect()
            if not connection.usable:
                raise ConnectionResetError("closed at once")
        except OSError as error:
            self._connecting = None
            self.owner.attempt_failed(Failure.CONNECT, error)
        else:
            self._connecting = None
            self._send(connection, head, body, reused=False)

    def _send(self, connection: UpstreamConnection, head: bytes, body: bytes, *, reused: bool) -> None:
        self._connection = connection
        self._reused = reused
        self.sent_s = self._now()
        connection.send(self, head, body)
        if self.owner.blocked:
            connection.pause()

    # What UpstreamConnection calls

    def reply_started(self, head: ReplyHead, body: bytes) -> None:
        if may_be_refusal(head):
            self._refusal = Refusal(head, body)
        elif head.event_stream and not body:
            self._head = head
        else:
            self._passes = self.owner.reply_began(head, body)

    def reply_data(self, data: bytes) -> None:
        if self._passes is not None:
            self._passes(data)
        elif self._head is not None:
            self._passes = self.owner.reply_began(self._head, data)
        elif self._refusal is not None and not self._refusal.add(data):
            self._passes = self.owner.reply_began(self._refusal.head, self._refusal.body)

    def reply_ended(self) -> None:
        if self._head is not None and self._passes is None:
            self._passes = self.owner.reply_began(self._head, b"")
        elif self._passes is None:
            assert self._refusal is not None
            if (failure := self._refusal.failure()) is not None:
                self.owner.attempt_failed(failure)
                return
            self._passes = self.owner.reply_began(self._refusal.head, self._refusal.body)
        self.owner.reply_ended()

    def reply_failed(self, error: Exception) -> None:
        answered = self._refusal is not None or self._head is not None
        if self._passes is not None:
            self.owner.reply_broke(error)
        elif isinstance(error, BadReply):
            self.owner.attempt_failed(Failure.BAD_REPLY, error)
        elif self._reused and not answered and self._now() - self.sent_s < STALE_WITHIN_S:
            self.owner.attempt_failed(Failure.STALE, error)
        else:
            self.owner.attempt_failed(Failure.LOST, error)
