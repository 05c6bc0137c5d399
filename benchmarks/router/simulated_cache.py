"""A paged prefix cache: blocks of 16 tokens, least recently used first out, tags of the routers on them.

One token is four bytes of the prompt's JSON. A block is known by the hash of everything up to its end, as in a real
engine. Knows no scheduler and no sockets.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from dataclasses import dataclass, field

import xxhash

TOKEN_BYTES = 4
BLOCK_TOKENS = 16
BLOCK_BYTES = BLOCK_TOKENS * TOKEN_BYTES
ROUTER_BLOCK_BYTES = 256


@dataclass(eq=False)
class Changes:
    """What has become of tags since a watcher last looked: True is stored, False evicted."""

    of: dict[int, bool] = field(default_factory=dict)


def block_hashes(content: bytes) -> list[int]:
    """One hash for each full block of the prompt, each over all that comes before it too."""
    parent = 0
    hashes = []
    for end in range(BLOCK_BYTES, len(content) + 1, BLOCK_BYTES):
        parent = xxhash.xxh3_64_intdigest(content[end - BLOCK_BYTES : end], parent)
        hashes.append(parent)
    return hashes


def read_chain(header: bytes) -> tuple[int, list[int]]:
    """Content bytes and router hashes of an `x-shoal-chain` header; no hashes when there is none."""
    size, _, encoded = header.partition(b";")
    raw = base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4))
    return int(size or b"0"), [int.from_bytes(raw[i : i + 8], "big") for i in range(0, len(raw), 8)]


class PagedCache:
    """Blocks in order of use, and which tag sits on which."""

    def __init__(self, capacity_blocks: int) -> None:
        self.capacity_blocks = capacity_blocks
        self.watchers: set[Changes] = set()
        self._blocks: OrderedDict[int, list[int]] = OrderedDict()  # block -> tags on it
        self._tags: dict[int, int] = {}  # tag -> block

    @property
    def tags(self) -> list[int]:
        return list(self._tags)

    def use(self, blocks: list[int]) -> int:
        """A prompt of these blocks is about to run; returns how many leading ones were there."""
        cache = self._blocks
        hits = next((i for i, block in enumerate(blocks) if block not in cache), len(blocks))
        for block in reversed(blocks):  # the tail of a prompt is the first to go
            cache.setdefault(block, [])
            cache.move_to_end(block)
        while len(cache) > self.capacity_blocks:
            _, tags = cache.popitem(last=False)
            for tag in tags:
                del self._tags[tag]
                self._changed(tag, stored=False)
        return hits

    def tag(self, blocks: list[int], prompt_tokens: int, content_bytes: int, chain: list[int]) -> None:
        """Put a router's hashes on the blocks that hold their share of the prompt."""
        for i, tag in enumerate(chain):
            position = -(-(i + 1) * ROUTER_BLOCK_BYTES * prompt_tokens // content_bytes)
            at = (position - 1) // BLOCK_TOKENS
            if at >= len(blocks):
                return
            if tag not in self._tags and blocks[at] in self._blocks:
                self._tags[tag] = blocks[at]
                self._blocks[blocks[at]].append(tag)
                self._changed(tag, stored=True)

    def _changed(self, tag: int, *, stored: bool) -> None:
        for changes in self.watchers:
            changes.of[tag] = stored
