"""One proxied request, from the client's last byte to the reply's: send, repeat elsewhere, pass on, account.

Nothing is committed to the client before the first byte of a reply worth passing on; until then a failed
attempt is repeated on another replica. After that the reply's bytes go through as they come, and a replica
that dies leaves a typed error in the stream and a cut connection, never a silent end. Callbacks only: a
request costs no task and no timer unless a connection has to be opened.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shoal_router.connection import ClientConnection
from shoal_router.endpoints import Endpoint
from shoal_router.errors import BadReply, ReplicaLost, ReplicasFull, ReplicaTimeout, RouterError
from shoal_router.failure import Failure, error_of
from shoal_router.placement import Placement
from shoal_router.prompt import Prompt, Work
from shoal_router.refusal import Refusal, may_be_refusal
from shoal_router.relay import Relay
from shoal_router.request import Request
from shoal_router.retry import FRESH, STALE_WITHIN_S, may_retry
from shoal_router.standing import Outcome
from shoal_router.timeouts import Overdue, overdue
from shoal_router.upstream import ReplyHead, UpstreamConnection
from shoal_router.usage import read_usage

if TYPE_CHECKING:
    from shoal_router.proxy import Proxy

CLIENT_CLOSED_REQUEST = 499  # in metrics only; nobody is there to receive it


class Exchange:
    """One request: the sink of its upstream connection and the answering party of its client connection."""

    __slots__ = (
        "_blocked",
        "_client",
        "_connecting",
        "_connection",
        "_failure",
        "_history",
        "_last_piece_s",
        "_placement",
        "_prompt",
        "_proxy",
        "_refusal",
        "_relay",
        "_request",
        "_reused",
        "_sent_s",
        "_tried",
        "started_s",
        "waits_until_s",
    )

    def __init__(self, proxy: Proxy, client: ClientConnection, request: Request, prompt: Prompt) -> None:
        self._proxy = proxy
        self._client = client
        self._request = request
        self._prompt = prompt
        self.started_s = self._sent_s = self._last_piece_s = proxy.now()
        self.waits_until_s = 0.0
        self._history = FRESH
        self._tried: list[Endpoint] = []
        self._failure: RouterError | None = None  # of the last attempt
        self._placement: Placement | None = None
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._reused = self._blocked = False
        self._refusal: Refusal | None = None  # may yet be repeated elsewhere
        self._relay: Relay | None = None  # set when the reply is committed

    # Attempts

    def attempt(self) -> None:
        """Choose a replica and send the request there."""
        try:
            placement = self._placement = self._proxy.placer.place(self._prompt, self._tried)
        except RouterError as error:
            if self._failure is not None and not isinstance(error, ReplicasFull):
                self.refuse(self._failure)
            else:
                self._proxy.held.wait(self, self._prompt.model, error)
            return
        # After a stale connection a fresh one: the others in the pool may be as old.
        pool = placement.endpoint.pool
        connection = None if self._history.stale else pool.take(self._proxy.now())
        if connection is not None:
            self._send(connection, reused=True)
        else:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(placement.endpoint))

    async def _connect(self, endpoint: Endpoint) -> None:
        try:
            connection = await endpoint.pool.connect()
            if not connection.usable:
                raise ConnectionResetError("closed at once")
        except OSError as error:
            self._connecting = None
            self._failed(Failure.CONNECT, error)
        else:
            self._connecting = None
            self._send(connection, reused=False)

    def _send(self, connection: UpstreamConnection, *, reused: bool) -> None:
        assert self._placement is not None
        request = self._request
        self._connection = connection
        self._reused = reused
        self._sent_s = self._proxy.now()
        connection.send(self, request.head_for(self._placement.endpoint.authority), request.body)
        if self._blocked:
            connection.pause()

    def _failed(self, failure: Failure, cause: Exception | None = None) -> None:
        """An attempt ended before anything was committed: repeat it elsewhere or give up."""
        proxy = self._proxy
        endpoint = self._end_attempt()
        if failure is Failure.FULL:
            # No fault, and no retry that the budget counts: the next report, or an end there, opens it again.
            endpoint.ceiling = endpoint.in_flight + endpoint.elsewhere
            proxy.metrics.retries[failure] += 1
            self.attempt()
            return
        if failure is Failure.REFUSED:
            proxy.observe(endpoint, Outcome.NOT_READY)
        elif failure is not Failure.STALE:
            proxy.observe(endpoint, Outcome.HARD_FAULT)
        past = self._history
        others_retrying = proxy.retrying - (past.retries > 0)
        self._failure = error_of(failure, endpoint.name, cause)
        limits = proxy.settings.retries
        if not may_retry(failure, past, limits, active=len(proxy.active), retrying=others_retrying):
            self.refuse(self._failure)
            return
        self._history = past.after(failure)
        if failure is not Failure.STALE:
            self._tried.append(endpoint)
            proxy.retrying += past.retries == 0
        proxy.metrics.retries[failure] += 1
        self.attempt()

    def _end_attempt(self) -> Endpoint:
        """Take the request off its replica's account."""
        placement = self._placement
        assert placement is not None
        self._placement = self._connection = self._refusal = None
        placement.endpoint.discharge(placement.uncached_tokens, placement.stamp)
        if self._proxy.held.queues:
            self._proxy.held.changed()
        return placement.endpoint

    def refuse(self, error: RouterError) -> None:
        """The client gets an error instead of a reply."""
        self._close_books(error.status)
        self._client.fail(error)

    # The reply: what UpstreamConnection calls

    def reply_started(self, head: ReplyHead, body: bytes) -> None:
        if may_be_refusal(head):
            self._refusal = Refusal(head, body)
        else:
            self._commit(head, body)

    def reply_data(self, data: bytes) -> None:
        if self._relay is not None:
            self._relay.piece(data)
        elif self._refusal is not None and not self._refusal.add(data):
            self._commit(self._refusal.head, self._refusal.body)

    def reply_ended(self) -> None:
        if self._refusal is not None:
            if (failure := self._refusal.failure()) is not None:
                self._failed(failure)
                return
            self._commit(self._refusal.head, self._refusal.body)
        assert self._relay is not None
        assert self._placement is not None
        if self._prompt.work is Work.GENERATE:
            usage = read_usage(self._relay.tail)
            if usage is not None:
                self._proxy.placer.settle(self._placement, self._prompt, usage)
        self._end_attempt()
        self._close_books(self._relay.status)
        self._relay.finish()

    def reply_failed(self, error: Exception) -> None:
        if self._relay is not None:
            self._break_off(
                ReplicaLost(
                    f"replica {self._name} died while it was answering: {error}; send the request again"
                )
            )
        elif isinstance(error, BadReply):
            self._failed(Failure.BAD_REPLY, error)
        elif self._reused and self._refusal is None and self._proxy.now() - self._sent_s < STALE_WITHIN_S:
            self._failed(Failure.STALE, error)
        else:
            self._failed(Failure.LOST, error)

    def _commit(self, head: ReplyHead, body: bytes) -> None:
        """From here on the client sees this replica's reply."""
        placement = self._placement
        assert placement is not None
        self._refusal = None
        self._request.body = b""  # it is sent nowhere else, and streams may last
        endpoint = placement.endpoint
        endpoint.first_byte(placement.uncached_tokens, placement.stamp)
        # 503 and 429 say that it is busy, and a 4xx is the client's doing: neither is a fault.
        fault = head.status >= 500 and head.status != 503
        self._proxy.observe(endpoint, Outcome.SOFT_FAULT if fault else Outcome.SUCCESS)
        self._last_piece_s = now = self._proxy.now()
        self._proxy.metrics.first_byte.observe(now - self.started_s)
        self._relay = Relay(self._client, head, http10=self._request.http10)
        added = b"x-shoal-replica: %b\r\nx-request-id: %b\r\n" % (endpoint.label, self._request.request_id)
        self._relay.start(body, added)

    def _break_off(self, error: RouterError, *, fault: bool = True) -> None:
        """A committed reply will not be completed."""
        relay, connection = self._relay, self._connection
        assert relay is not None
        assert connection is not None
        endpoint = self._end_attempt()
        if fault:
            self._proxy.observe(endpoint, Outcome.HARD_FAULT)
        self._proxy.metrics.broken_replies += 1
        self._close_books(relay.status)
        relay.break_off(error, connection.at_chunk_boundary)

    # The client: what ClientConnection calls

    def client_lost(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.abort()
        if self._placement is not None:
            self._end_attempt()
        self._proxy.metrics.client_disconnects += 1
        self._close_books(CLIENT_CLOSED_REQUEST)

    def client_blocked(self) -> None:
        self._blocked = True
        if self._connection is not None:
            self._connection.pause()

    def client_unblocked(self) -> None:
        self._blocked = False
        if self._relay is not None:
            self._relay.fresh = True
        if self._connection is not None:
            self._connection.resume()

    # Time

    def check_timeouts(self, now: float) -> None:
        """Called by the proxy's sweep. A blocked client is the listener's to judge."""
        connection, relay = self._connection, self._relay
        if connection is None or self._blocked:
            return  # connecting has its own timeout
        if relay is not None and relay.fresh:
            relay.fresh = False
            self._last_piece_s = now
        late = overdue(
            self._proxy.settings.timeouts,
            age_s=now - self.started_s,
            waited_s=now - self._sent_s if relay is None and self._prompt.stream else None,
            silent_s=now - self._last_piece_s if relay is not None else None,
        )
        if late is None:
            return
        connection.abort()
        fault = late is not Overdue.TOTAL
        if relay is not None:
            self._break_off(ReplicaTimeout(f"replica {self._name}: {late.value}"), fault=fault)
        elif fault:
            self._failed(Failure.TIMEOUT)
        else:
            self._end_attempt()
            self.refuse(ReplicaTimeout(late.value))

    # Accounts

    @property
    def _name(self) -> str:
        return self._placement.endpoint.name if self._placement is not None else "?"

    def _close_books(self, status: int) -> None:
        proxy = self._proxy
        proxy.active.discard(self)
        if proxy.held.queues:
            proxy.held.drop(self, self._prompt.model)
        proxy.demand.ended(self._prompt.model)
        proxy.retrying -= self._history.retries > 0
        proxy.metrics.finished(self._prompt.model, status, proxy.now() - self.started_s)
