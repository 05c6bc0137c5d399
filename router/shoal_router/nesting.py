"""How deep a JSON text nests, in constant stack: an engine that walks a body of a thousand levels may fail at it.

Takes text that has been read as JSON already. Nearly every body has fewer brackets than levels are allowed, which a
search for each shows (0.5 us for 8 KB; counting looks at byte by byte, and took 6); the others cost what it takes to
leave their strings out.
"""

from __future__ import annotations

import re
from typing import Final

MOST_LEVELS: Final = 32
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_INNERMOST: Final = re.compile(rb"\[\]|\{\}")
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")


def too_deep(text: bytes) -> bool:
    """Whether arrays and objects nest more than MOST_LEVELS levels."""
    if _count(text, b"[") + _count(text, b"{") <= MOST_LEVELS:
        return False
    brackets = _STRING.sub(b"", text).translate(None, _NO_BRACKETS)
    for _ in range(MOST_LEVELS):  # each time without the innermost pairs
        if not brackets:
            return False
        brackets = _INNERMOST.sub(b"", brackets)
    return bool(brackets)


def _count(text: bytes, bracket: bytes) -> int:
    """How often it stands there; no matter how much more often than MOST_LEVELS."""
    count, at = 0, text.find(bracket)
    while at >= 0 and count <= MOST_LEVELS:
        count += 1
        at = text.find(bracket, at + 1)
    return count
