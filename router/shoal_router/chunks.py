"""Chunks of a body that lie in the bytes whole, cut by their sizes instead of parsed. For the ordinary ones alone.

What it does not take (a size in capitals, an extension, a chunk in two pieces, the last one) is for llhttp, which decides
what is valid; whatever it takes is valid there too. Byte by byte, which compiled takes less than one search.
"""

from __future__ import annotations

from typing import Final

_MOST_SIZE_DIGITS: Final = 6


def chunk_at(data: bytes, at: int) -> tuple[int, int]:
    """Where the bytes of the chunk that begins at `at` start and stop; two more end it. Zeros for no ordinary one."""
    size, behind, end = 0, at, len(data)
    while behind < end and behind - at <= _MOST_SIZE_DIGITS:
        digit = data[behind]
        if 0x30 <= digit <= 0x39:
            size = 16 * size + digit - 0x30
        elif 0x61 <= digit <= 0x66:
            size = 16 * size + digit - 0x57
        else:
            break
        behind += 1
    start = behind + 2
    stop = start + size
    if size == 0 or behind - at > _MOST_SIZE_DIGITS or stop + 2 > end:
        return 0, 0
    if data[behind] != 0x0D or data[behind + 1] != 0x0A or data[stop] != 0x0D or data[stop + 1] != 0x0A:
        return 0, 0
    return start, stop


def whole_chunks(data: bytes) -> bool:
    """Whether it is nothing but such chunks."""
    at, end = 0, len(data)
    while at < end:
        start, stop = chunk_at(data, at)
        if not start:
            return False
        at = stop + 2
    return True
