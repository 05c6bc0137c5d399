"""Token ids to text as they come, and stop strings found in that text. Holds back what is not yet certain, no more."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from shoal_engine.tokenizer import Tokenizer

_LONGEST_CHARACTER = 4  # bytes of UTF-8


class Detokenizer:
    """The texts of all `push` and the final `flush` in a row are what `Tokenizer.decode` adds to the prompt's text.

    Each token costs its own bytes only. An incomplete character waits for its last byte.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        tail = self._tail(prompt_token_ids)
        # A prompt may end inside a character: what the last bytes leave open is continued, the rest is not ours.
        self._decoder.decode(tail)
        self._may_strip = tokenizer.strips_space and not tail

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that has become certain with these tokens; often empty within a character."""
        visible = self._tokenizer.visible_bytes
        return self._text(b"".join([visible(token_id, self._skip_special_tokens) for token_id in token_ids]))

    def flush(self) -> str:
        """What is left when no more tokens come: U+FFFD for an incomplete character."""
        return self._decoder.decode(b"", final=True)

    def _text(self, new: bytes) -> str:
        if self._may_strip and new:
            self._may_strip = False
            new = new.removeprefix(b" ")
        return self._decoder.decode(new)

    def _tail(self, prompt_token_ids: Sequence[int]) -> bytes:
        """The prompt's last bytes, at least as many as a character has, or all there are."""
        tail = b""
        for token_id in reversed(prompt_token_ids):
            tail = self._tokenizer.visible_bytes(token_id, self._skip_special_tokens) + tail
            if len(tail) >= _LONGEST_CHARACTER:
                break
        return tail


class StopStrings:
    """Cuts a text at the first place where one of `stops` is complete; with `include`, behind that stop string.

    Text that could be the beginning of a stop string is held back, and given out as soon as it cannot be any
    more. Where several are complete at the same character, the longest counts.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._matches = [_Match(stop) for stop in stops]
        self._include = include
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Text that may be shown now, and the stop string that ends the whole, once it is complete."""
        if not self._matches:
            return text, None
        whole = self._held + text
        for at, character in enumerate(text, start=len(self._held) + 1):
            complete = [match.stop for match in self._matches if match.advance(character)]
            if complete:
                stop = max(complete, key=len)
                self._held = ""
                return whole[: at if self._include else at - len(stop)], stop
        shown = len(whole) - max(match.length for match in self._matches)
        self._held = whole[shown:]
        return whole[:shown], None

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        text, self._held = self._held, ""
        return text


class _Match:
    """How much of one stop string the text so far ends with (Knuth, Morris, Pratt: constant work per character)."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.length = 0
        # _shorter[n]: the longest proper beginning of `stop` that its first n characters also end with.
        self._shorter = [0, 0]
        for character in stop[1:]:
            self._shorter.append(self._longer(self._shorter[-1], character))

    def advance(self, character: str) -> bool:
        """Whether the stop string is complete with this character."""
        self.length = self._longer(self.length, character)
        return self.length == len(self.stop)

    def _longer(self, length: int, character: str) -> int:
        while length and (length == len(self.stop) or self.stop[length] != character):
            length = self._shorter[length]
        return length + (self.stop[length] == character)
