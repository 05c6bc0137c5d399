"""What a token stands for, as bytes, for the decoders that `tokenizers` files declare. One token at a time.

A text is the bytes of its tokens in a row, less a leading space where the decoder says so. That makes decoding
incremental: nothing that comes later changes what came before. Decoders that look at whole texts are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import Tokenizer

from shoal_engine.errors import ModelLoadError

_SPACE_MARK = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 characters are themselves, the rest U+0100 onwards in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()


class TokenBytes:
    """The bytes of each token of one vocabulary; `strips_space`: a text loses one space at its very start."""

    def __init__(self, inner: Tokenizer) -> None:
        self._inner = inner
        self._known: dict[int, bytes] = {}
        self.strips_space = False
        self._steps: list[Callable[[str], str | bytes]] = []
        for part in _parts(inner):
            self._add_step(part)

    def __getitem__(self, token_id: int) -> bytes:
        """Empty for an id that is no token: models have more outputs than tokens."""
        found = self._known.get(token_id)
        if found is None:
            found = self._known[token_id] = self._spell(token_id)
        return found

    def _spell(self, token_id: int) -> bytes:
        value: str | bytes = (self._inner.id_to_token(token_id) if token_id >= 0 else None) or ""
        for step in self._steps:
            if isinstance(value, bytes):
                break
            value = step(value)
        return value if isinstance(value, bytes) else value.encode()

    def _add_step(self, part: Mapping[str, Any]) -> None:
        kind = part["type"]
        if kind == "ByteLevel":
            self._steps.append(_from_byte_alphabet)
        elif kind == "ByteFallback":
            self._steps.append(_from_byte_token)
        elif kind == "Replace" and "String" in part["pattern"]:
            old, new = part["pattern"]["String"], part["content"]
            self._steps.append(lambda text: text.replace(old, new))
        elif kind == "Metaspace":
            mark = part["replacement"]
            self._steps.append(lambda text: text.replace(mark, " "))
            self.strips_space = part.get("prepend_scheme", "always") != "never"
        elif kind == "Strip" and (part["content"], part["start"], part["stop"]) == (" ", 1, 0):
            self.strips_space = True
        elif kind != "Fuse":
            raise ModelLoadError(
                f"the tokenizer's decoder {kind!r} is not supported; serve the model as a GGUF file"
            )


def _parts(inner: Tokenizer) -> list[dict[str, Any]]:
    if inner.decoder is None:
        raise ModelLoadError("the tokenizer has no decoder; its tokenizer.json cannot turn tokens into text")
    decoder: dict[str, Any] = json.loads(inner.decoder.__getstate__())
    parts: list[dict[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return parts


def _from_byte_alphabet(text: str) -> str | bytes:
    """Tokens with any other character, as added tokens may have, are plain text."""
    try:
        return bytes(BYTE_ALPHABET[character] for character in text)
    except KeyError:
        return text


def _from_byte_token(text: str) -> str | bytes:
    match = _BYTE_TOKEN.fullmatch(text)
    return bytes.fromhex(match[1]) if match else text
