"""One proxied request, from the client's last byte to the reply's: try, try elsewhere, pass on, account.

Nothing is committed to the client before the first byte of a reply worth passing on; until then a failed
attempt is repeated on another replica. After that the reply's bytes go through as they come, and a replica
that dies leaves a typed error in the stream and a cut connection, never a silent end. Callbacks only: a
request costs no task and no timer unless a connection has to be opened. Sockets are attempt.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal_router.attempt import Attempt
from shoal_router.connection import ClientConnection
from shoal_router.endpoints import Endpoint
from shoal_router.errors import ReplicaLost, ReplicasFull, ReplicaTimeout, RouterError
from shoal_router.failure import Failure, error_of
from shoal_router.prompt import Prompt, Work
from shoal_router.relay import Relay
from shoal_router.request import Request
from shoal_router.retry import FRESH, may_retry
from shoal_router.standing import Outcome
from shoal_router.timeouts import Overdue, overdue
from shoal_router.upstream import ReplyHead
from shoal_router.usage import read_usage

if TYPE_CHECKING:
    from shoal_router.proxy import Proxy

CLIENT_CLOSED_REQUEST = 499  # in metrics only; nobody is there to receive it


class Exchange:
    """One request: makes its attempts, and is the answering party of its client connection."""

    __slots__ = (
        "_attempt",
        "_client",
        "_failure",
        "_history",
        "_last_piece_s",
        "_prompt",
        "_proxy",
        "_relay",
        "_request",
        "_tried",
        "blocked",
        "started_s",
        "waits_until_s",
    )

    def __init__(self, proxy: Proxy, client: ClientConnection, request: Request, prompt: Prompt) -> None:
        self._proxy = proxy
        self._client = client
        self._request = request
        self._prompt = prompt
        self.started_s = self._last_piece_s = proxy.now()
        self.waits_until_s = 0.0
        self.blocked = False  # the client reads slower than the reply comes
        self._history = FRESH
        self._tried: list[Endpoint] = []
        self._failure: RouterError | None = None  # of the last attempt
        self._attempt: Attempt | None = None  # under way
        self._relay: Relay | None = None  # set when a reply is committed

    def attempt(self) -> None:
        """Choose a replica and send the request there."""
        proxy, request = self._proxy, self._request
        try:
            placement = proxy.placer.place(self._prompt, self._tried)
        except RouterError as error:
            if self._failure is not None and not isinstance(error, ReplicasFull):
                self.refuse(self._failure)
            else:
                proxy.held.wait(self, self._prompt.model, error)
            return
        attempt = self._attempt = Attempt(self, placement, proxy.now)
        # After a stale connection a fresh one: the others in the pool may be as old.
        head = request.head_for(placement.endpoint.authority, placement.chain_line)
        attempt.send(head, request.body, fresh=bool(self._history.stale))

    def refuse(self, error: RouterError) -> None:
        """The client gets an error instead of a reply."""
        self._close_books(error.status)
        self._client.fail(error)

    # What its attempt calls

    def attempt_failed(self, failure: Failure, cause: Exception | None = None) -> None:
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

    def reply_began(self, head: ReplyHead, body: bytes) -> Callable[[bytes], None]:
        """From here on the client sees this replica's reply. Returns what takes the rest of its bytes."""
        assert self._attempt is not None
        placement = self._attempt.placement
        self._request.body = b""  # it is sent nowhere else, and streams may last
        endpoint = placement.endpoint
        endpoint.first_byte(placement.uncached_tokens, placement.stamp)
        # 503 and 429 say that it is busy, and a 4xx is the client's doing: neither is a fault.
        fault = head.status >= 500 and head.status != 503
        self._proxy.observe(endpoint, Outcome.SOFT_FAULT if fault else Outcome.SUCCESS)
        self._last_piece_s = now = self._proxy.now()
        self._proxy.metrics.first_byte.observe(now - self.started_s)
        relay = self._relay = Relay(self._client, head, http10=self._request.http10)
        added = b"x-shoal-replica: %b\r\nx-request-id: %b\r\n" % (endpoint.label, self._request.request_id)
        relay.start(body, added)
        return relay.piece

    def reply_ended(self) -> None:
        """The whole reply has been passed on."""
        relay, attempt = self._relay, self._attempt
        assert relay is not None
        assert attempt is not None
        if self._prompt.work is Work.GENERATE:
            usage = read_usage(relay.tail)
            if usage is not None:
                self._proxy.placer.settle(attempt.placement, self._prompt, usage)
        self._end_attempt()
        self._close_books(relay.status)
        relay.finish()

    def reply_broke(self, error: Exception) -> None:
        """The replica died in the middle of a committed reply."""
        assert self._attempt is not None
        lost = f"replica {self._attempt.name} died while it was answering: {error}; send the request again"
        self._break_off(ReplicaLost(lost))

    def _break_off(self, error: RouterError, *, fault: bool = True) -> None:
        """A committed reply will not be completed."""
        relay, attempt = self._relay, self._attempt
        assert relay is not None
        assert attempt is not None
        endpoint = self._end_attempt()
        if fault:
            self._proxy.observe(endpoint, Outcome.HARD_FAULT)
        self._proxy.metrics.broken_replies += 1
        self._close_books(relay.status)
        relay.break_off(error, attempt.at_chunk_boundary)

    # What its client connection calls

    def client_lost(self) -> None:
        if self._attempt is not None:
            self._attempt.abort()
            self._end_attempt()
        self._proxy.metrics.client_disconnects += 1
        self._close_books(CLIENT_CLOSED_REQUEST)

    def client_blocked(self) -> None:
        self.blocked = True
        if self._attempt is not None:
            self._attempt.pause()

    def client_unblocked(self) -> None:
        self.blocked = False
        if self._relay is not None:
            self._relay.fresh = True
        if self._attempt is not None:
            self._attempt.resume()

    def check_timeouts(self, now: float) -> None:
        """Called by the proxy's sweep. A blocked client is the listener's to judge."""
        attempt, relay = self._attempt, self._relay
        if attempt is None or not attempt.sent or self.blocked:
            return  # connecting has its own timeout
        if relay is not None and relay.fresh:
            relay.fresh = False
            self._last_piece_s = now
        late = overdue(
            self._proxy.settings.timeouts,
            age_s=now - self.started_s,
            waited_s=now - attempt.sent_s if relay is None and self._prompt.stream else None,
            silent_s=now - self._last_piece_s if relay is not None else None,
        )
        if late is None:
            return
        attempt.abort()
        fault = late is not Overdue.TOTAL
        if relay is not None:
            self._break_off(ReplicaTimeout(f"replica {attempt.name}: {late.value}"), fault=fault)
        elif fault:
            self.attempt_failed(Failure.TIMEOUT)
        else:
            self._end_attempt()
            self.refuse(ReplicaTimeout(late.value))

    # Accounts

    def _end_attempt(self) -> Endpoint:
        attempt = self._attempt
        assert attempt is not None
        self._attempt = None
        endpoint = attempt.end()
        if self._proxy.held.queues:
            self._proxy.held.changed()
        return endpoint

    def _close_books(self, status: int) -> None:
        proxy = self._proxy
        proxy.active.discard(self)
        if proxy.held.queues:
            proxy.held.drop(self, self._prompt.model)
        proxy.demand.ended(self._prompt.model)
        proxy.retrying -= self._history.retries > 0
        proxy.metrics.finished(self._prompt.model, status, proxy.now() - self.started_s)
