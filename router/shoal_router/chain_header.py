"""The header line that carries a prompt's chain to an engine that pushes its state; the engine tags blocks with it.

Format: names.HEADER_CHAIN. Every hash is sent, also of what the engine is thought to hold: by the time that the
request is computed it may hold it no more.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import Final

from shoal_api.names import HEADER_CHAIN

_LINE: Final = HEADER_CHAIN.encode() + b": %d;%b\r\n"
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


def chain_line(content_bytes: int, chain: Sequence[int]) -> bytes:
    """The whole line with its end; nothing for a prompt that is shorter than a block."""
    if not chain:
        return b""
    hashes = _big_endian(len(chain)).pack(*chain)
    text = b2a_base64(hashes, newline=False).rstrip(b"=").translate(_URL_SAFE)
    return _LINE % (content_bytes, text)


@lru_cache(maxsize=4096)
def _big_endian(count: int) -> Struct:
    return Struct(f">{count}Q")
