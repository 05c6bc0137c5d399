"""One try at one replica: take or open a connection, send the request, hand the reply to its exchange.

Repeats nothing. A reply that may be a refusal before any work is withheld until it is whole, then judged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal_router.endpoints import Endpoint
from shoal_router.errors import BadReply
from shoal_router.failure import Failure
from shoal_router.placement import Placement
from shoal_router.refusal import Refusal, may_be_refusal
from shoal_router.retry import STALE_WITHIN_S
from shoal_router.upstream import ReplyHead, UpstreamConnection

if TYPE_CHECKING:
    from shoal_router.exchange import Exchange


class Attempt:
    """One request on one replica: the sink of its upstream connection.

    Tells its exchange one of `attempt_failed`, or `reply_began` and then `reply_ended` or `reply_broke`.
    """

    __slots__ = (
        "_connecting",
        "_connection",
        "_exchange",
        "_now",
        "_passes",
        "_refusal",
        "_reused",
        "placement",
        "sent_s",
    )

    def __init__(self, exchange: Exchange, placement: Placement, now: Callable[[], float]) -> None:
        self.placement = placement
        self.sent_s = 0.0
        self._exchange = exchange
        self._now = now
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._reused = False
        self._refusal: Refusal | None = None  # may yet be repeated elsewhere
        self._passes: Callable[[bytes], None] | None = None  # takes the reply's bytes once it has begun

    @property
    def sent(self) -> bool:
        """Whether it has come as far as a connection."""
        return self._connection is not None

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

    def end(self) -> Endpoint:
        """Take the request off its replica's account."""
        self.placement.end()
        return self.placement.endpoint

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
            self._exchange.attempt_failed(Failure.CONNECT, error)
        else:
            self._connecting = None
            self._send(connection, head, body, reused=False)

    def _send(self, connection: UpstreamConnection, head: bytes, body: bytes, *, reused: bool) -> None:
        self._connection = connection
        self._reused = reused
        self.sent_s = self._now()
        connection.send(self, head, body)
        if self._exchange.blocked:
            connection.pause()

    # What UpstreamConnection calls

    def reply_started(self, head: ReplyHead, body: bytes) -> None:
        if may_be_refusal(head):
            self._refusal = Refusal(head, body)
        else:
            self._passes = self._exchange.reply_began(head, body)

    def reply_data(self, data: bytes) -> None:
        if self._passes is not None:
            self._passes(data)
        elif self._refusal is not None and not self._refusal.add(data):
            self._passes = self._exchange.reply_began(self._refusal.head, self._refusal.body)

    def reply_ended(self) -> None:
        if self._passes is None:
            assert self._refusal is not None
            if (failure := self._refusal.failure()) is not None:
                self._exchange.attempt_failed(failure)
                return
            self._exchange.reply_began(self._refusal.head, self._refusal.body)
        self._exchange.reply_ended()

    def reply_failed(self, error: Exception) -> None:
        if self._passes is not None:
            self._exchange.reply_broke(error)
        elif isinstance(error, BadReply):
            self._exchange.attempt_failed(Failure.BAD_REPLY, error)
        elif self._reused and self._refusal is None and self._now() - self.sent_s < STALE_WITHIN_S:
            self._exchange.attempt_failed(Failure.STALE, error)
        else:
            self._exchange.attempt_failed(Failure.LOST, error)
