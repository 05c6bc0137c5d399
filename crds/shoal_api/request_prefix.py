"""The chain of block hashes over a request's bytes: the key of the router's index. Knows no tokens, no HTTP.

The router has no tokenizer, so it hashes what the client wrote, in blocks of 256 bytes:

    start     xxh3_64( model | 0x00 | adapter | 0x00 | salt, seed 0 )      each in UTF-8
    block i   xxh3_64( block, seed = hash of block i-1, or start )

A collision costs a wrong guess about one cache and nothing else, hence the fast hash: answers depend on the
engine's own chain (prefix.py) alone. All routers find the same hashes and so agree without a shared store.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Final

from xxhash import xxh3_64_intdigest

BLOCK_BYTES: Final = 256


def request_chain_start(model: str, adapter: str = "", salt: str = "") -> int:
    """Where the chains of one model, adapter and tenant or cache salt begin."""
    return xxh3_64_intdigest("\0".join((model, adapter, salt)).encode(errors="surrogatepass"))


def hash_request(content: bytes, start: int) -> list[int]:
    """The hashes of all full blocks of `content`, first block first, each below 2**64."""
    parent = start
    hashes = []
    for block in _blocks(len(content) // BLOCK_BYTES).unpack_from(content):
        parent = xxh3_64_intdigest(block, parent)
        hashes.append(parent)
    return hashes


@lru_cache(maxsize=4096)
def _blocks(count: int) -> Struct:
    """Cuts `count` blocks off at once: a third less time for 8 KB than a slice for each."""
    return Struct(f"{BLOCK_BYTES}s" * count)
