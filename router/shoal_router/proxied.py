"""One request on its way through the router: its client, the attempt under way, its accounts. Decides nothing.

What follows when an attempt fails is exchange.py's before a reply has begun, resumable_stream.py's after that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from shoal_api.names import HEADER_RESUMABLE, HEADER_TIMEOUT_MS
from shoal_router.attempt import Attempt
from shoal_router.connection import ClientConnection
from shoal_router.endpoints import Endpoint
from shoal_router.failure import Failure
from shoal_router.placement import Placement
from shoal_router.prompt import Prompt
from shoal_router.reply_head import ReplyHead
from shoal_router.request import Request
from shoal_router.retry import FRESH
from shoal_router.usage import Usage, read_usage

if TYPE_CHECKING:
    from shoal_router.proxy import Proxy

CLIENT_CLOSED_REQUEST: Final = 499  # in metrics only; nobody is there to receive it
_RESUMABLE_LINE: Final = b"%b: 1\r\n" % HEADER_RESUMABLE.encode()
_TIMEOUT_LINE: Final = HEADER_TIMEOUT_MS.encode() + b": %d\r\n"


class Proxied(ABC):
    """The answering party of a client connection, as far as it is the same at all times."""

    __slots__ = (
        "_attempt",
        "_client",
        "_history",
        "_kept",
        "_last_piece_s",
        "_prompt",
        "_proxy",
        "_request",
        "_tried",
        "_usage",
        "blocked",
        "started_s",
    )

    def __init__(
        self, proxy: Proxy, client: ClientConnection, request: Request, prompt: Prompt, started_s: float
    ) -> None:
        self.started_s = started_s
        self.blocked = False  # the client reads slower than the reply comes
        self._proxy = proxy
        self._client = client
        self._request = request
        self._prompt = prompt
        self._last_piece_s = started_s
        self._history = FRESH
        self._tried: list[Endpoint] = []
        self._attempt: Attempt | None = None  # under way
        self._usage: Usage | None = None  # as the engine counted, once it has
        self._kept = False  # whether the body is kept, and counted, for as long as the reply lasts

    @abstractmethod
    def check_timeouts(self, now: float) -> None:
        """Called by the proxy's sweep."""

    # What its attempt calls (attempt.Owner)

    @abstractmethod
    def attempt_failed(self, failure: Failure, cause: Exception | None = None) -> None: ...

    @abstractmethod
    def reply_began(self, head: ReplyHead, body: bytes) -> Callable[[bytes], None]: ...

    @abstractmethod
    def reply_ended(self) -> None: ...

    @abstractmethod
    def reply_broke(self, error: Exception) -> None: ...

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
        if self._attempt is not None:
            self._attempt.resume()

    # Attempts and accounts

    def _send(self, request: Request, placement: Placement, lines: bytes = b"") -> None:
        """Send a request to the replica that was chosen; `lines` are header lines for its engine."""
        proxy = self._proxy
        attempt = self._attempt = Attempt(self, placement, proxy.now)
        left_s = self.started_s + proxy.settings.timeouts.total_s - proxy.now()
        lines += placement.chain_line + _TIMEOUT_LINE % max(1, int(1000 * left_s))
        if self._kept:
            lines += _RESUMABLE_LINE
        record = self._request.record
        lines += self._request.head.trace_line if record is None else record.attempt(placement.endpoint.name)
        placement.decision.request_id = request.request_id
        head = request.head_for(placement.endpoint.authority, lines)
        # After a stale connection a fresh one: the others in the pool may be as old.
        attempt.send(head, request.body, fresh=bool(self._history.stale))

    def _answered(self, attempt: Attempt, head: ReplyHead) -> None:
        """The attempt's reply has begun: its prompt is computed."""
        attempt.placement.first_byte()
        attempt.placement.decision.status = head.status
        if self._request.record is not None:
            self._request.record.first_byte(head.status)

    def _end_attempt(self, failure: str = "") -> Endpoint:
        """The attempt is over: take it off its replica's account."""
        proxy, attempt, record = self._proxy, self._attempt, self._request.record
        assert attempt is not None
        self._attempt = None
        placement = attempt.placement
        placement.decision.outcome = failure or "done"
        if record is not None:
            record.attempt_ended(failure)
        placement.end()
        if proxy.interrupted.streams:
            proxy.interrupted.changed()
        if proxy.admission.queues:
            proxy.admission.changed()
        return placement.endpoint

    def _learn(self, placement: Placement, tail: Sequence[bytes]) -> None:
        """Take in what the engine says that the request took, at the end of its reply."""
        proxy, prompt = self._proxy, self._prompt
        usage = self._usage = placement.decision.usage = read_usage(tail)
        if usage is not None:
            proxy.answers.learn(prompt.model, usage.completion_tokens)
            if not self._history.deaths:
                proxy.placer.settle(placement, prompt, usage)

    def _suspected(self, dead: Endpoint, deaths: int) -> bool:
        """A replica died with the request on board. `deaths`: of this kind, without a token there, this one included."""
        quarantine = self._proxy.quarantine
        quarantine.died(dead, self._proxy.now())
        return quarantine.suspects(deaths)

    def _let_go(self) -> None:
        """The body will be sent nowhere else, and replies may last."""
        if self._kept:
            self._kept = False
            self._proxy.kept_bytes -= len(self._request.body)
        self._request.body = b""

    def _close_books(self, status: int) -> None:
        proxy = self._proxy
        proxy.active.discard(self)
        self._let_go()
        proxy.demand.ended(self._prompt.model)
        proxy.retrying -= self._history.retries > 0
        now = proxy.now()
        if self._request.grant is not None:
            proxy.gate.end(self._request.grant, self._prompt, status, self._usage)
        if self._request.record is not None:
            self._request.record.end(status, self._usage)
        proxy.metrics.finished(self._prompt.model, status, now - self.started_s)
