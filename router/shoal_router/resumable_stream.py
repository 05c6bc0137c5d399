"""One stream that outlives its replicas, from its first reply's head to its end.

When a replica dies, breaks HTTP, falls silent or ends the stream too early, another one is asked for the rest: the
client sees a pause. Which failures are borne is retry.py's, what is asked resume.py's, the bytes resumable_relay.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from shoal_router import replies
from shoal_router.attempt import Attempt
from shoal_router.connection import ClientConnection
from shoal_router.endpoints import Endpoint
from shoal_router.errors import BadReply, ReplicaLost, ReplicaTimeout, RouterError
from shoal_router.failure import Failure, error_of, lost_error, outcome_of, read_last_word
from shoal_router.prompt import Prompt
from shoal_router.proxied import Proxied
from shoal_router.reply_head import ReplyHead
from shoal_router.request import Request
from shoal_router.resumable_relay import ResumableRelay
from shoal_router.resume import Progress, rest_of, state_of
from shoal_router.retry import History, may_resume
from shoal_router.standing import Outcome
from shoal_router.timeouts import Overdue, overdue
from shoal_router.usage import Usage

if TYPE_CHECKING:
    from shoal_router.proxy import Proxy

UNLIKE: Final = 409  # what an engine answers that would write something else than the one that began


class ResumableStream(Proxied):
    """Takes over from an Exchange whose reply can be resumed."""

    __slots__ = ("_failure", "_gives_up_s", "_relay", "_unlike")

    def __init__(
        self,
        proxy: Proxy,
        client: ClientConnection,
        request: Request,
        prompt: Prompt,
        started_s: float,
        *,
        attempt: Attempt,
        history: History,
        head: ReplyHead,
        state: bytes,
    ) -> None:
        super().__init__(proxy, client, request, prompt, started_s)
        self._attempt = attempt
        self._history = history
        self._last_piece_s = proxy.now()
        self._kept = True
        self._failure: RouterError | None = None  # of the last replica
        self._gives_up_s = 0.0  # on the search for another one
        self._unlike: list[Endpoint] = []  # of another version or kind than the one that began
        self._relay = ResumableRelay(client, head, Progress(state), self._last_word, http10=request.http10)

    def begin(self, body: bytes, added: bytes) -> Callable[[bytes], None]:
        """Send the head with the `added` lines and the first bytes. Returns what takes the others."""
        attempt = self._attempt
        assert attempt is not None
        attempt.owner = self
        proxy = self._proxy
        proxy.active.add(self)
        self._client.answered_by(self)
        self._relay.start(body, added)
        return self._relay.piece

    def attempt(self) -> None:
        """Choose a replica and ask it for the rest; wait when there is none."""
        proxy, progress = self._proxy, self._relay.progress
        out = self._tried + self._unlike
        try:
            placement = proxy.placer.place(self._prompt, out, len(progress.ids))
        except RouterError:
            self._tried.clear()  # by then the one that died may be back
            proxy.interrupted.wait(self, self._gives_up_s)
            return
        proxy.interrupted.drop(self)
        self._send(rest_of(self._request, progress), placement, progress.line())

    # What its attempt calls

    def attempt_failed(self, failure: Failure, cause: Exception | None = None) -> None:
        """A replica did not begin to go on."""
        endpoint = self._end_attempt(failure)
        if failure is Failure.FULL:
            endpoint.refused()
            self.attempt()
            return
        self._observe(endpoint, failure)
        if failure is not Failure.STALE:
            self._tried.append(endpoint)
        self._history = self._history.after(failure, begun=True)
        self._failure = error_of(failure, endpoint.name, cause)
        self._resume(endpoint if failure is Failure.LOST else None)

    def reply_began(self, head: ReplyHead, body: bytes) -> Callable[[bytes], None]:
        """A replica answers the request for the rest of the stream."""
        relay, attempt, metrics = self._relay, self._attempt, self._proxy.metrics
        assert attempt is not None
        self._answered(attempt, head)
        state = state_of(head)
        if state is None:
            attempt.abort()
            self._declined(self._end_attempt(f"status {head.status}"), head.status)
            return relay.piece
        self._proxy.observe(attempt.placement.endpoint, Outcome.SUCCESS)
        self._last_piece_s = self._proxy.now()
        metrics.resumes["resumed"] += 1
        metrics.resumed_tokens += len(relay.progress.ids)
        relay.follow(head, state)
        relay.piece(body)
        return relay.piece

    def _declined(self, endpoint: Endpoint, status: int) -> None:
        """A replica answered something else than the rest of the stream."""
        if status == UNLIKE:
            self._unlike.append(endpoint)
            self.attempt()
        elif status >= 500:
            self._proxy.observe(endpoint, Outcome.SOFT_FAULT)
            self._tried.append(endpoint)
            self._history = self._history.after(Failure.BAD_REPLY, begun=True)
            self._resume()
        else:
            why = (
                f"replica {endpoint.name} could not go on with the answer of one that died (status {status})"
            )
            self._break_off("refused", ReplicaLost(f"{why}; send the request again"))

    def reply_ended(self) -> None:
        """A replica has no more to say."""
        relay, attempt = self._relay, self._attempt
        assert attempt is not None
        if not relay.progress.done:
            self._lost(Failure.LOST, lost_error(attempt.name, "it ended its stream too early"))
            return
        self._learn(attempt.placement, relay.tail)
        self._end_attempt()
        self._complete()

    def reply_broke(self, error: Exception) -> None:
        """A replica died, or broke HTTP, in the middle of the stream."""
        assert self._attempt is not None
        failure = Failure.BAD_REPLY if isinstance(error, BadReply) else Failure.LOST
        self._lost(failure, lost_error(self._attempt.name, error))

    def _last_word(self, word: bytes | BadReply) -> None:
        """The engine has written an error in place of the rest, or what an engine does not write."""
        attempt = self._attempt
        assert attempt is not None
        attempt.abort()
        if isinstance(word, BadReply):
            self._lost(Failure.BAD_REPLY, lost_error(attempt.name, word))
        elif (failure := read_last_word(word)) is not None:
            self._lost(failure, lost_error(attempt.name, "its engine has ended"))
        else:  # the request's own error, which it would meet anywhere
            self._end_attempt()
            self._end_with(word)

    # Going on

    def _lost(self, failure: Failure, error: RouterError) -> None:
        """The replica that was writing is out."""
        proxy, relay = self._proxy, self._relay
        endpoint = self._end_attempt(failure)
        self._observe(endpoint, failure)
        if relay.progress.done:
            self._complete()  # only the end of the framing is missing
            return
        self._failure = error
        self._history = self._history.after(failure, begun=True, fruitful=relay.fruitful)
        self._tried = [endpoint] if relay.fruitful else [*self._tried, endpoint]
        wait_s = proxy.routing(self._prompt.model).resume_wait_s
        self._gives_up_s = min(proxy.now() + wait_s, self.started_s + proxy.settings.timeouts.total_s)
        self._resume(endpoint if failure is Failure.LOST else None)

    def _resume(self, dead: Endpoint | None = None) -> None:
        assert self._failure is not None
        suspected = dead is not None and self._suspected(dead, self._history.fruitless)
        if may_resume(self._history) and not suspected:
            self.attempt()
        elif suspected:
            self._break_off("quarantined", self._proxy.quarantine.put(self._request, self._proxy.now()))
        else:
            self._break_off("given_up", self._failure)

    def _observe(self, endpoint: Endpoint, failure: Failure) -> None:
        outcome = outcome_of(failure)
        if outcome is not None:
            self._proxy.observe(endpoint, outcome)

    def ping(self) -> None:
        """Keep the client while no replica can go on."""
        if not self.blocked:
            self._relay.ping()

    def give_up(self) -> None:
        """No replica could go on in time."""
        assert self._failure is not None
        self._break_off("no_replica", self._failure)

    # The end

    def check_timeouts(self, now: float) -> None:
        """A blocked client is the listener's to judge."""
        attempt, relay = self._attempt, self._relay
        if self.blocked or attempt is None or not attempt.sent:
            return  # connecting and waiting have their own timeouts
        if relay.fresh:
            relay.fresh = False
            self._last_piece_s = now
        late = overdue(
            self._proxy.settings.timeouts,
            age_s=now - self.started_s,
            waited_s=None if attempt.begun else now - attempt.sent_s,
            silent_s=now - self._last_piece_s if attempt.begun else None,
        )
        if late is None:
            return
        attempt.abort()
        if late is Overdue.TOTAL:
            self._end_attempt()
            self._end_with(replies.error_event(ReplicaTimeout(late.value)))
        elif attempt.begun:
            self._lost(Failure.TIMEOUT, ReplicaTimeout(f"replica {attempt.name}: {late.value}"))
        else:
            self.attempt_failed(Failure.TIMEOUT)

    def client_lost(self) -> None:
        self._proxy.interrupted.drop(self)
        super().client_lost()

    def client_unblocked(self) -> None:
        self._relay.fresh = True
        super().client_unblocked()

    def _close_books(self, status: int) -> None:
        if self._usage is None:  # its tokens were counted on their way
            prompt_tokens = round(self._proxy.gate.prompt_tokens(self._prompt))
            self._usage = Usage(prompt_tokens, None, len(self._relay.progress.ids))
        super()._close_books(status)

    def _complete(self) -> None:
        self._close_books(self._relay.status)
        self._relay.finish()

    def _break_off(self, outcome: str, error: RouterError) -> None:
        self._proxy.metrics.resumes[outcome] += 1
        self._proxy.metrics.count_error(error)
        self._end_with(replies.error_event(error))

    def _end_with(self, event: bytes) -> None:
        self._proxy.metrics.broken_replies += 1
        self._close_books(self._relay.status)
        self._relay.end_with(event)
