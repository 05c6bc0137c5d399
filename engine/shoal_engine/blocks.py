"""The pool of KV blocks: hand out, count references, find by prefix hash, evict. Knows no requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from shoal_engine.cache_tags import CacheTags
from shoal_engine.free_list import FreeList

NULL_BLOCK = 0  # stands in tables for "no block"; never handed out, never freed


class BlockPool:
    """Blocks 1..num_blocks-1. One is used (references > 0) or free; a free one with a hash still serves hits.

    The head of the free list is reused first. Blocks without a hash go to the head, hashed ones to the
    tail, the last block of a table before the first, so that leaves of the prefix tree are evicted before
    their parents.

    Two requests may compute the same content at once. Both blocks stay (tables are append-only), one serves
    hits, the other is its twin and takes over when the first is evicted; of idle twins the freshest is kept.
    """

    def __init__(self, num_blocks: int, enable_prefix_caching: bool = True) -> None:
        if num_blocks < 2:
            raise ValueError(f"a pool needs at least 2 blocks (one is the null block), got {num_blocks}")
        self.num_blocks = num_blocks
        self.enable_prefix_caching = enable_prefix_caching
        self.queries = 0  # prompt tokens looked up; counted by the scheduler, which knows what became of it
        self.hits = 0  # prompt tokens found
        self.tags = CacheTags()  # of the contents that a lookup could find
        self._free = FreeList(num_blocks)
        self._references = [0] * num_blocks
        self._hash: list[bytes | None] = [None] * num_blocks
        self._cached: dict[bytes, int] = {}
        self._twins: dict[bytes, list[int]] = {}

    @property
    def capacity(self) -> int:
        """Blocks that can be handed out at all."""
        return self.num_blocks - 1

    @property
    def num_free(self) -> int:
        return self._free.count

    @property
    def usage(self) -> float:
        """Share of the blocks that are used, 0..1; cached blocks that nobody holds are free."""
        return 1.0 - self._free.count / self.capacity

    @property
    def num_cached(self) -> int:
        """Different contents that a lookup could find."""
        return len(self._cached)

    def references(self, block: int) -> int:
        """How many tables hold the block."""
        return self._references[block]

    def is_cached(self, block: int) -> bool:
        """Whether a lookup could find it, or could if it had no twin."""
        return self._hash[block] is not None

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks from the head of the free list; cached contents among them are evicted.

        The caller has checked `num_free`: asking for more is a bug, raises RuntimeError and changes nothing.
        """
        if count > self._free.count:
            raise RuntimeError(f"asked for {count} blocks, {self._free.count} are free")
        taken = self._free.pop(count)
        for block in taken:
            self._references[block] = 1
            if self._hash[block] is not None:
                self._unpublish(block)
        return taken

    def touch(self, blocks: Iterable[int]) -> None:
        """One more table holds each of these blocks. Null blocks are skipped."""
        for block in blocks:
            if block == NULL_BLOCK:
                continue
            if not self._references[block]:
                self._free.unlink(block)
            self._references[block] += 1

    def free(self, table: Sequence[int]) -> None:
        """One table no longer holds its blocks, given in the table's order. Null blocks are skipped."""
        for block in reversed(table):
            if block == NULL_BLOCK:
                continue
            if not self._references[block]:
                raise RuntimeError(f"block {block} was freed more often than it was taken")
            self._references[block] -= 1
            if not self._references[block]:
                self._keep_idle(block)

    def publish(self, block: int, block_hash: bytes) -> None:
        """From now on a lookup finds this full, used block under its hash."""
        if not self.enable_prefix_caching:
            return
        if not self._references[block] or self._hash[block] is not None:
            raise RuntimeError(f"block {block} cannot be published: it is free or has a hash already")
        self._hash[block] = block_hash
        if self._cached.setdefault(block_hash, block) != block:
            self._twins.setdefault(block_hash, []).append(block)

    def forget(self, blocks: Iterable[int]) -> None:
        """Take these blocks out of the prefix cache, as contents may be wrong. Skips those without a hash."""
        for block in blocks:
            if self._hash[block] is None:
                continue
            self._unpublish(block)
            if not self._references[block]:
                self._free.unlink(block)
                self._free.put_first(block)

    def lookup(self, hashes: Sequence[bytes], start: int, stop: int) -> list[int]:
        """Blocks of hashes[start:stop] up to the first that is not cached. References do not change."""
        found = []
        cached = self._cached.get
        for index in range(start, stop):
            block = cached(hashes[index])
            if block is None:
                break
            found.append(block)
        return found

    def lookup_window(self, hashes: Sequence[bytes], stop: int, run: int) -> list[int]:
        """Table of the longest prefix of hashes[:stop] whose last `run` >= 1 are cached; others are null."""
        tail: list[int] = []
        cached = self._cached.get
        for index in range(stop - 1, -1, -1):
            block = cached(hashes[index])
            if block is None:
                tail = []
                continue
            tail.append(block)
            if len(tail) == run:
                return [NULL_BLOCK] * index + tail[::-1]
        return tail[::-1]

    def check_integrity(self, tables: Iterable[Sequence[int]] | None = None) -> None:
        """Raise RuntimeError if any invariant is broken; with all tables given, also check the references."""
        free = set(self._free.check())
        used = {block for block in range(1, self.num_blocks) if self._references[block]}
        _require(not used & free, f"free and referenced: {sorted(used & free)}")
        _require(len(used) + len(free) == self.capacity, "a block is neither used nor free")
        _require(
            not self._references[NULL_BLOCK] and self._hash[NULL_BLOCK] is None, "the null block was used"
        )
        copies = Counter(block_hash for block_hash in self._hash if block_hash is not None)
        _require(copies.keys() == self._cached.keys(), "hashes of blocks and the map of hashes differ")
        _require(
            self._twins.keys() <= self._cached.keys() and all(self._twins.values()), "twins without a first"
        )
        for block_hash, block in self._cached.items():
            group = [block, *self._twins.get(block_hash, ())]
            _require(
                all(self._hash[member] == block_hash for member in group), f"block {block} has another hash"
            )
            _require(
                len(group) == copies[block_hash] == len(set(group)), f"copies of block {block} miscounted"
            )
            _require(len(free.intersection(group)) <= 1, f"idle twins of block {block}")
        if tables is not None:
            held = Counter(block for table in tables for block in table if block != NULL_BLOCK)
            wrong = [block for block in range(1, self.num_blocks) if held[block] != self._references[block]]
            _require(not wrong, f"references of blocks {wrong} differ from the tables that hold them")

    def _keep_idle(self, block: int) -> None:
        """`block` has lost its last reference: where in the free list does it go?"""
        block_hash = self._hash[block]
        if block_hash in self._twins:  # the content exists twice: keep at most one idle copy, the freshest
            copies = (self._cached[block_hash], *self._twins[block_hash])
            idle = [copy for copy in copies if copy != block and not self._references[copy]]
            if idle:
                self.forget(idle)
            else:  # the copies in use outlive this one
                self._unpublish(block)
                block_hash = None
        if block_hash is None:
            self._free.put_first(block)
        else:
            self._free.put_last(block)

    def _unpublish(self, block: int) -> None:
        block_hash = self._hash[block]
        assert block_hash is not None
        self._hash[block] = None
        twins = self._twins.get(block_hash)
        if twins is None:
            del self._cached[block_hash]
            self.tags.drop(block_hash)
            return
        if self._cached[block_hash] == block:
            self._cached[block_hash] = twins.pop()
        else:
            twins.remove(block)
        if not twins:
            del self._twins[block_hash]


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(f"block pool: {otherwise}")
