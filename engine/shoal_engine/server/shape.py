"""What chat and text completions have in common when they answer: who the answer is from, and what it has
cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from shoal_engine.choice_text import Delta
from shoal_engine.messages import Output, TokenLogprobs
from shoal_engine.server.replies import CachedTokens, Usage


@dataclass(frozen=True, slots=True)
class Letterhead:
    """The fields every chunk of an answer repeats."""

    id: str
    created: int
    model: str
    system_fingerprint: str


@dataclass(slots=True)
class Choice:
    """One choice, gathered from its deltas."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.prompt_logprobs = self.prompt_logprobs or delta.prompt_logprobs
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason


class Shape(Protocol):
    """How an answer looks to the client. Choices are numbered: n for each prompt in turn."""

    def opening(self) -> list[Any]:
        """The chunks that a stream begins with."""

    def chunk(self, choice: int, delta: Delta) -> Any | None:
        """A stream's next chunk, its usage unset; None if `delta` has nothing to show."""

    def skip(self, choice: int, token_ids: Sequence[int]) -> None:
        """The client has these chunks already: those of the first tokens of `choice`."""

    def closing(self) -> Any:
        """A stream's last chunk, without choices; it carries the usage of the whole."""

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Any:
        """The answer in one piece."""


@dataclass(slots=True)
class Meter:
    """Counts an answer's tokens: each prompt once, however many choices it has; cached ones as its first
    choice saw.
    """

    prompt_tokens: int
    choices_per_prompt: int
    completion_tokens: int = 0
    cached_tokens: int | None = None  # None: not known yet
    _keeps_cached: bool = False

    def on_output(self, choice: int, output: Output) -> None:
        if self._keeps_cached or output.num_cached_tokens is None or choice % self.choices_per_prompt:
            return
        self.cached_tokens = (self.cached_tokens or 0) + output.num_cached_tokens

    def keep_cached(self, cached_tokens: int | None) -> None:
        """If known: what another engine has counted, whatever this one finds in its cache."""
        self.cached_tokens = cached_tokens
        self._keeps_cached = cached_tokens is not None

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
            prompt_tokens_details=CachedTokens(self.cached_tokens or 0),
        )
