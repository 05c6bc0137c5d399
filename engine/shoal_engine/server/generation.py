"""What the engine has produced for one HTTP request and nobody has taken yet. Between the socket and one
handler.

The socket's side never waits: outputs of a request whose client is slow melt into one. The handler's side
waits for the next news. One wake-up per step, however many of the request's choices moved in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from shoal_engine.errors import EngineError
from shoal_engine.messages import Output, Submit

if TYPE_CHECKING:
    from shoal_engine.server.open_requests import Open

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed its connection; nobody wants an answer any more."""


class TooMuchHeld(EngineError):
    """The answer outgrows what the API process may keep for one request."""

    code = "answer_too_large"


class Generation:
    """The requests to the engine that one HTTP request became; choice i is `submits[i]`."""

    def __init__(self, arrived_s: float, most_held: int = 2_000_000) -> None:
        """`most_held`: tokens and log probabilities that may be held for it, some 130 bytes each."""
        self.arrived_s = arrived_s  # on the monotonic clock
        self.submits: Sequence[Submit] = ()
        self.timeline: list[Open] | None = None  # of its requests at the engine, when somebody traces them
        self._pending: dict[int, Output] = {}
        self._news = asyncio.Event()
        self._gone = False
        self._error: EngineError | None = None
        self._held = 0
        self._most_held = most_held

    def push(self, choice: int, output: Output) -> None:
        self._held += size_of(output)
        if self._held > self._most_held:
            self._pending.clear()
            self.fail(
                TooMuchHeld("The answer holds too many log probabilities. Ask for fewer, or stream it.")
            )
            return
        before = self._pending.get(choice)
        self._pending[choice] = output if before is None else join(before, output)
        self._news.set()

    @property
    def held(self) -> int:
        """Tokens and log probabilities that came since the last release."""
        return self._held

    def release(self) -> None:
        """What has been taken so far is not held any more."""
        self._held = 0

    def fail(self, error: EngineError) -> None:
        """The engine will produce no more; what it has produced can still be taken."""
        self._error = self._error or error
        self._news.set()

    def leave(self) -> None:
        """The client has gone."""
        self._gone = True
        self._news.set()

    def nudge(self) -> None:
        """Let the handler look at the clock."""
        self._news.set()

    def check_client(self) -> None:
        """Raise ClientGone if there is nobody left to answer."""
        if self._gone:
            raise ClientGone

    def check_error(self) -> None:
        """Raise the engine's error at once, if there is one, whatever could still be taken."""
        if self._error is not None:
            raise self._error

    async def take(self) -> dict[int, Output]:
        """News by choice, none after a nudge. Raises ClientGone, and the engine's error once everything is
        taken.
        """
        await self._news.wait()
        self.check_client()
        if not self._pending:
            self.check_error()
        pending, self._pending = self._pending, {}
        if self._error is None:
            self._news.clear()
        return pending


def size_of(output: Output) -> int:
    """Tokens and log probabilities in an output."""
    size = len(output.token_ids)
    for entries in (output.logprobs, output.prompt_logprobs):
        if entries is not None:
            size += sum(1 + len(entry.top) for entry in entries if entry is not None)
    return size


def join(first: Output, then: Output) -> Output:
    """Two outputs of one request as if one step had produced both. Takes the lists of `first` over: a client
    that reads nothing for long must not cost a copy per step.
    """
    first.token_ids.extend(then.token_ids)
    return msgspec.structs.replace(
        then,
        token_ids=first.token_ids,
        logprobs=_concatenate(first.logprobs, then.logprobs),
        prompt_logprobs=first.prompt_logprobs if then.prompt_logprobs is None else then.prompt_logprobs,
        num_cached_tokens=first.num_cached_tokens
        if then.num_cached_tokens is None
        else then.num_cached_tokens,
    )


def _concatenate(first: list[T] | None, then: list[T] | None) -> list[T] | None:
    if first is None or then is None:
        return then if first is None else first
    first.extend(then)
    return first
