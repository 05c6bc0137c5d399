"""What an engine says a prompt really cost, read from the end of its reply;

and bytes per token learned from it. No reply is parsed: `"prompt_tokens":` with bare quotes cannot stand
inside a JSON string, where quotes are escaped, so a search in the last bytes is exact or finds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shoal_router.digits import number_at

DEFAULT_BYTES_PER_TOKEN: Final = 4.0
_LOWEST, _HIGHEST = 0.5, 64.0  # beyond these something else than text was counted
_LEARNING_RATE: Final = 0.05
_TAIL_BYTES: Final = 4096
_COLON: Final = 0x3A
_ENDS: Final = b",}"
_BLANKS: Final = b" \t\r\n"


class Usage:
    """`cached_tokens` of the `prompt_tokens` came from the engine's cache; None when it does not tell."""

    __slots__ = ("cached_tokens", "completion_tokens", "prompt_tokens")

    def __init__(self, prompt_tokens: int, cached_tokens: int | None, completion_tokens: int = 0) -> None:
        self.prompt_tokens: Final = prompt_tokens
        self.cached_tokens: Final = cached_tokens
        self.completion_tokens: Final = completion_tokens


def read_usage(pieces: Sequence[bytes]) -> Usage | None:
    """Usage in the last pieces of a reply's body; None when there is none or a chunk border cuts it."""
    tail = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if len(tail) > _TAIL_BYTES:
        tail = tail[-_TAIL_BYTES:]
    prompt = _last_number(tail, b'"prompt_tokens"')
    if prompt < 0:
        return None
    cached, completion = _last_number(tail, b'"cached_tokens"'), _last_number(tail, b'"completion_tokens"')
    return Usage(prompt, cached if cached >= 0 else None, max(0, completion))


def _last_number(tail: bytes, name: bytes) -> int:
    """The number behind the last such name that has one, searched from the end, where it stands; else -1."""
    at = tail.rfind(name)
    while at >= 0:
        number = _value_at(tail, at + len(name))
        if number >= 0:
            return number
        at = tail.rfind(name, 0, at)
    return -1


def _value_at(text: bytes, at: int) -> int:
    """The number between a colon there and the next member or the object's end; -1 when there is none."""
    at = _behind_blanks(text, at)
    if at == len(text) or text[at] != _COLON:
        return -1
    number, at = number_at(text, _behind_blanks(text, at + 1))
    at = _behind_blanks(text, at)
    return number if at < len(text) and text[at] in _ENDS else -1


def _behind_blanks(text: bytes, at: int) -> int:
    while at < len(text) and text[at] in _BLANKS:
        at += 1
    return at


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
