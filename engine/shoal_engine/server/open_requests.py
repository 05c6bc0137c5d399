"""The requests that are with the engine, and who waits for what each of them produces. No sockets, no processes."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from shoal_engine.errors import EngineError
from shoal_engine.messages import Output, Outputs, Submit
from shoal_engine.server.engine_faults import error_of
from shoal_engine.server.fault_replies import internal_error
from shoal_engine.server.generation import Generation
from shoal_engine.server.pace import Pace

log = logging.getLogger(__name__)


class Open(msgspec.Struct):
    """One request that is with the engine. Times are seconds on the monotonic clock."""

    generation: Generation
    choice: int
    prompt_tokens: int
    max_tokens: int
    submitted_s: float
    started_s: float = 0.0  # when its first step began, 0: not known
    first_token_s: float = 0.0  # 0: none yet
    last_token_s: float = 0.0
    tokens: int = 0
    given_tokens: int = 0  # generated elsewhere: the next one is not its first


class Listener(Protocol):
    """Who is told of every step; metrics.py."""

    def on_outputs(self, outputs: Outputs, now_s: float) -> None: ...

    def on_tokens(self, request: Open, count: int, now_s: float) -> None:
        """`count` more tokens of `request`, whose own fields still say how it was before them."""

    def on_finish(self, request: Open, reason: str, now_s: float) -> None: ...


class OpenRequests:
    """By the ids the engine knows them under. `since_ns`: when there last was none; None if there is none now."""

    def __init__(self, listener: Listener) -> None:
        self.since_ns: int | None = None
        self._listener = listener
        self._open: dict[str, Open] = {}
        self._serials = itertools.count()
        self._pace = Pace()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def retry_after_s(self) -> int:
        """When as many as there are now will have ended."""
        return self._pace.retry_after_s(len(self._open))

    def add(self, generation: Generation, submits: Sequence[Submit]) -> None:
        """Take a generation's requests in, under ids of our own: a client's cannot be trusted to be unique."""
        generation.submits = [msgspec.structs.replace(each, id=str(next(self._serials))) for each in submits]
        self.since_ns = self.since_ns or time.monotonic_ns()
        now_s = time.monotonic()
        for choice, submit in enumerate(generation.submits):
            prompt_tokens, max_tokens = len(submit.prompt_token_ids), submit.params.max_tokens or 0
            one = Open(generation, choice, prompt_tokens, max_tokens, now_s)
            if submit.output_token_ids:
                one.given_tokens, one.last_token_s = len(submit.output_token_ids), generation.arrived_s
            self._open[submit.id] = one
            if generation.timeline is not None:
                generation.timeline.append(one)

    def deliver(self, outputs: Outputs, now_s: float) -> None:
        """Pass on what a step did. What goes wrong with one request is that request's own error."""
        self._listener.on_outputs(outputs, now_s)
        for output in outputs.outputs:
            request = self._open.get(output.id)
            if request is None:
                continue  # aborted while this was under way
            try:
                self._deliver(request, output, now_s)
            except Exception:
                log.exception("an output could not be delivered", extra={"engine_request": output.id})
                request.generation.fail(internal_error())

    def end(self, ids: Iterable[str], reason: str) -> list[str]:
        """Forget requests that nobody waits for; those that were still open."""
        found = [request_id for request_id in ids if request_id in self._open]
        now_s = time.monotonic()
        for request_id in found:
            self._end(request_id, reason, now_s)
        return found

    def fail_all(self, error: EngineError) -> None:
        """Nothing more will come for any of them."""
        for request in self._open.values():
            request.generation.fail(error)
        self.end(list(self._open), "abort")

    def _deliver(self, request: Open, output: Output, now_s: float) -> None:
        if output.token_ids:
            self._listener.on_tokens(request, len(output.token_ids), now_s)
            if output.queued_s is not None:
                request.started_s = request.submitted_s + output.queued_s
            request.first_token_s = request.first_token_s or now_s
            request.last_token_s = now_s
            request.tokens += len(output.token_ids)
        if output.finish_reason in ("error", "abort"):
            request.generation.fail(error_of(output))
        else:
            request.generation.push(request.choice, output)
        if output.finish_reason is not None:
            self._end(output.id, output.finish_reason, now_s)

    def _end(self, request_id: str, reason: str, now_s: float) -> None:
        self._listener.on_finish(self._open.pop(request_id), reason, now_s)
        self._pace.on_finish(now_s)
        if not self._open:
            self.since_ns = None
