"""One proxied request, from the client's last byte to the reply's: try, try elsewhere, pass on.

Nothing is committed to the client before the first byte of a reply worth passing on; until then a failed
attempt is repeated on another replica. After that the reply's bytes go through as they come, and a replica
that dies leaves a typed error in the stream and a cut connection, never a silent end; a stream that can be resumed is
handed to resumable_stream.py. Callbacks only: a request costs no task and no timer unless a connection has to be opened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal_router.attempt import Attempt
from shoal_router.connection import ClientConnection
from shoal_router.errors import ReplicasFull, ReplicaTimeout, RouterError
from shoal_router.failure import Failure, error_of, lost_error, outcome_of
from shoal_router.fair_queue import Claim
from shoal_router.prompt import Prompt, Work
from shoal_router.proxied import Proxied
from shoal_router.relay import Relay
from shoal_router.reply_head import ReplyHead
from shoal_router.request import Request
from shoal_router.resumable_stream import ResumableStream
from shoal_router.resume import state_of
from shoal_router.retry import may_retry
from shoal_router.standing import Outcome
from shoal_router.timeouts import Overdue, overdue

if TYPE_CHECKING:
    from shoal_router.proxy import Proxy


class Exchange(Proxied):
    """One request with one reply, whole or broken off."""

    __slots__ = ("_failure", "_relay", "waits_until_s")

    def __init__(self, proxy: Proxy, client: ClientConnection, request: Request, prompt: Prompt) -> None:
        super().__init__(proxy, client, request, prompt, proxy.now())
        self.waits_until_s = 0.0
        self._failure: RouterError | None = None  # of the last attempt
        self._relay: Relay | None = None  # set when a reply is committed
        self._kept = (
            prompt.stream and prompt.work is Work.GENERATE and proxy.keep(prompt.model, len(request.body))
        )

    @property
    def claim(self) -> Claim:
        """What it asks for, when it has to wait."""
        return self._proxy.gate.claim(self._request, self._prompt)

    def attempt(self) -> None:
        """Choose a replica and send the request there."""
        proxy = self._proxy
        try:
            placement = proxy.placer.place(self._prompt, self._tried)
        except RouterError as error:
            if self._failure is not None and not isinstance(error, ReplicasFull):
                self.refuse(self._failure)
            else:
                proxy.admission.wait(self, self._prompt.model, error)
            return
        self._send(self._request, placement)

    def refuse(self, error: RouterError) -> None:
        """The client gets an error instead of a reply."""
        self._leave(error.status)
        self._client.fail(error)

    # What its attempt calls

    def attempt_failed(self, failure: Failure, cause: Exception | None = None) -> None:
        """An attempt ended before anything was committed: repeat it elsewhere or give up."""
        proxy, past = self._proxy, self._history
        endpoint = self._end_attempt(failure)
        if failure is Failure.FULL:
            # No fault, and no retry that the budget counts.
            endpoint.refused()
            proxy.metrics.retries[failure] += 1
            self.attempt()
            return
        if (outcome := outcome_of(failure)) is not None:
            proxy.observe(endpoint, outcome)
        self._failure = error_of(failure, endpoint.name, cause)
        after = past.after(failure)
        suspected = failure is Failure.LOST and self._suspected(endpoint, after.fruitless)
        others, limits = proxy.retrying - (past.retries > 0), proxy.settings.retries
        active = len(proxy.active)
        if may_retry(failure, past, limits, active=active, retrying=others, suspected=suspected):
            self._history = after
            proxy.retrying += (after.retries > 0) - (past.retries > 0)
            if failure is not Failure.STALE:
                self._tried.append(endpoint)
            proxy.metrics.retries[failure] += 1
            self.attempt()
        elif suspected:
            self.refuse(proxy.quarantine.put(self._request, proxy.now()))
        else:
            self.refuse(self._failure)

    def reply_began(self, head: ReplyHead, body: bytes) -> Callable[[bytes], None]:
        """From here on the client sees this replica's reply."""
        proxy, attempt = self._proxy, self._attempt
        assert attempt is not None
        self._answered(attempt, head)
        endpoint = attempt.placement.endpoint
        # 503 and 429 say that it is busy, and a 4xx is the client's doing: neither is a fault.
        fault = head.status >= 500 and head.status != 503
        proxy.observe(endpoint, Outcome.SOFT_FAULT if fault else Outcome.SUCCESS)
        self._last_piece_s = now = proxy.now()
        proxy.metrics.first_byte.observe(now - self.started_s)
        added = b"x-shoal-replica: %b\r\nx-request-id: %b\r\n" % (endpoint.label, self._request.request_id)
        if self._request.grant is not None:
            added += self._request.grant.meter.lines(now)
        state = state_of(head) if self._kept else None
        if state is not None:
            return self._hand_over(attempt, head, state).begin(body, added)
        self._let_go()
        relay = self._relay = Relay(self._client, head, http10=self._request.http10)
        relay.start(body, added)
        return relay.piece

    def _hand_over(self, attempt: Attempt, head: ReplyHead, state: bytes) -> ResumableStream:
        self._proxy.active.discard(self)
        return ResumableStream(
            self._proxy,
            self._client,
            self._request,
            self._prompt,
            self.started_s,
            attempt=attempt,
            history=self._history,
            head=head,
            state=state,
        )

    def reply_ended(self) -> None:
        """The whole reply has been passed on."""
        relay, attempt = self._relay, self._attempt
        assert relay is not None
        assert attempt is not None
        if self._prompt.work is Work.GENERATE:
            self._learn(attempt.placement, relay.tail)
        self._end_attempt()
        self._leave(relay.status)
        relay.finish()

    def reply_broke(self, error: Exception) -> None:
        """The replica died in the middle of a committed reply."""
        assert self._attempt is not None
        self._break_off(lost_error(self._attempt.name, error), Outcome.HARD_FAULT)

    def _break_off(self, error: RouterError, outcome: Outcome | None) -> None:
        """A committed reply will not be completed."""
        proxy, relay, attempt = self._proxy, self._relay, self._attempt
        assert relay is not None
        assert attempt is not None
        endpoint = self._end_attempt(error.code)
        if outcome is not None:
            proxy.observe(endpoint, outcome)
        proxy.metrics.broken_replies += 1
        self._leave(relay.status)
        relay.break_off(error, attempt.at_chunk_boundary)

    # What its client connection calls

    def client_lost(self) -> None:
        self._leave_queue()
        super().client_lost()

    def client_unblocked(self) -> None:
        if self._relay is not None:
            self._relay.fresh = True
        super().client_unblocked()

    def check_timeouts(self, now: float) -> None:
        """A blocked client is the listener's to judge."""
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
            error = ReplicaTimeout(f"replica {attempt.name}: {late.value}")
            self._break_off(error, Outcome.HARD_FAULT if fault else None)
        elif fault:
            self.attempt_failed(Failure.TIMEOUT)
        else:
            self._end_attempt()
            self.refuse(ReplicaTimeout(late.value))

    def _leave(self, status: int) -> None:
        self._leave_queue()
        self._close_books(status)

    def _leave_queue(self) -> None:
        if self._proxy.admission.queues:
            self._proxy.admission.drop(self, self._prompt.model)
