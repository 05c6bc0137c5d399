"""What an engine says a prompt really cost, read from the end of its reply;

and bytes per token learned from it. No reply is parsed: `"prompt_tokens":` with bare quotes cannot stand
inside a JSON string, where quotes are escaped, so a search in the last bytes is exact or finds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

DEFAULT_BYTES_PER_TOKEN: Final = 4.0
_LOWEST, _HIGHEST = 0.5, 64.0  # beyond these something else than text was counted
_LEARNING_RATE: Final = 0.05
_TAIL_BYTES: Final = 4096

_NUMBER: Final = re.compile(rb"\s*:\s*(\d{1,9})\s*[,}]")


class Usage(msgspec.Struct, frozen=True):
    """`cached_tokens` of the `prompt_tokens` came from the engine's cache; None when it does not tell."""

    prompt_tokens: int
    cached_tokens: int | None
    completion_tokens: int = 0


def read_usage(pieces: Iterable[bytes]) -> Usage | None:
    """Usage in the last pieces of a reply's body; None when there is none or a chunk border cuts it."""
    tail = b"".join(pieces)[-_TAIL_BYTES:]
    prompt = _last_number(tail, b'"prompt_tokens"')
    if prompt is None:
        return None
    return Usage(
        prompt, _last_number(tail, b'"cached_tokens"'), _last_number(tail, b'"completion_tokens"') or 0
    )


def _last_number(tail: bytes, name: bytes) -> int | None:
    """The number behind the last such name that has one; searched from the end, where it stands."""
    at = len(tail)
    while (at := tail.rfind(name, 0, at)) >= 0:
        found = _NUMBER.match(tail, at + len(name))
        if found is not None:
            return int(found[1])
    return None


class BytesPerToken:
    """Bytes of canonical prompt per token, per model, as a running mean."""

    def __init__(self) -> None:
        self._ratios: dict[str, float] = {}

    def of(self, model: str) -> float:
        return self._ratios.get(model, DEFAULT_BYTES_PER_TOKEN)

    def learn(self, model: str, prompt_bytes: int, prompt_tokens: int) -> None:
        """One prompt of so many bytes had so many tokens."""
        if prompt_tokens > 0:
            seen = min(max(prompt_bytes / prompt_tokens, _LOWEST), _HIGHEST)
            before = self.of(model)
            self._ratios[model] = before + _LEARNING_RATE * (seen - before)


DEFAULT_ANSWER_TOKENS: Final = 256.0


class AnswerTokens:
    """Tokens of an answer, per model, as a running mean."""

    def __init__(self) -> None:
        self._means: dict[str, float] = {}

    def expected(self, model: str, most: int) -> float:
        """Tokens to expect of an answer that may have at most so many; 0 sets no limit."""
        mean = self._means.get(model, DEFAULT_ANSWER_TOKENS)
        return min(mean, most) if most else mean

    def learn(self, model: str, tokens: int) -> None:
        """One answer had so many tokens."""
        before = self._means.setdefault(model, float(tokens))
        self._means[model] = before + _LEARNING_RATE * (tokens - before)
