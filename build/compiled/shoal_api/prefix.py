"""The chain of hashes over blocks of token ids, keys of the prefix cache. Knows neither cache nor request.

Only full blocks have a hash, and each hash stands for its block and all before it. Bytes that are hashed:

    start     sha256( "shoal.dev/kv-block/1" | block_tokens u32 [ | 0x01 | length u32 | salt in UTF-8 ] )
    block i   sha256( hash of block i-1, or start | token ids int32 [ | 0x02 | adapter digest, 32 bytes ] )

All numbers are little-endian and the seed is fixed: every replica, in any language, finds the same hash. The
salt enters once, at the start; who does not know it can neither hit nor probe the blocks behind it. Adapters
are known by the digest of their weights: a new one under an old name never meets the old one's blocks.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from array import array
from collections.abc import Sequence

SEED = b"shoal.dev/kv-block/1"
SALT_TAG = b"\x01"
ADAPTER_TAG = b"\x02"
DIGEST_BYTES = 32

_INT32 = next(code for code in "il" if array(code).itemsize == 4)


def chain_start(block_tokens: int, cache_salt: str | None = None) -> bytes:
    """What stands in place of a parent for block 0. An empty salt is no salt."""
    start = SEED + struct.pack("<I", block_tokens)
    if cache_salt:
        salt = cache_salt.encode(errors="surrogatepass")
        start += SALT_TAG + struct.pack("<I", len(salt)) + salt
    return hashlib.sha256(start).digest()


def block_hash(parent: bytes, tokens: Sequence[int], adapter_digest: bytes | None = None) -> bytes:
    """The hash of one full block behind `parent`, 32 bytes. Raises OverflowError for ids outside int32."""
    return hashlib.sha256(parent + _token_bytes(tokens) + _adapter_bytes(adapter_digest)).digest()


def hash_blocks(
    token_ids: Sequence[int],
    block_tokens: int,
    cache_salt: str | None = None,
    adapter_digest: bytes | None = None,
) -> list[bytes]:
    """The hashes of all full blocks of `token_ids`, first block first; a partial last block has none."""
    data = _token_bytes(token_ids)
    adapter = _adapter_bytes(adapter_digest)
    step = 4 * block_tokens
    parent = chain_start(block_tokens, cache_salt)
    hashes = []
    for end in range(step, len(data) + 1, step):
        parent = hashlib.sha256(parent + data[end - step : end] + adapter).digest()
        hashes.append(parent)
    return hashes


def _token_bytes(tokens: Sequence[int]) -> bytes:
    words = array(_INT32, tokens)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def _adapter_bytes(digest: bytes | None) -> bytes:
    if digest is None:
        return b""
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"an adapter digest is a sha256 of {DIGEST_BYTES} bytes, this has {len(digest)}")
    return ADAPTER_TAG + digest
