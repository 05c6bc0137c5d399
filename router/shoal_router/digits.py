"""A decimal number in the midst of bytes. Byte by byte, which compiled takes a tenth of what a regular expression does."""

from __future__ import annotations

from typing import Final

MOST_DIGITS: Final = 9


def number_at(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends; -1 for no digit, or more than MOST_DIGITS."""
    number, behind, end = 0, at, len(data)
    while behind < end and 0x30 <= data[behind] <= 0x39 and behind - at <= MOST_DIGITS:
        number = 10 * number + data[behind] - 0x30
        behind += 1
    return (number, behind) if 0 < behind - at <= MOST_DIGITS else (-1, behind)
