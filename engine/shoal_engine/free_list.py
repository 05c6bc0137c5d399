"""The free blocks in the order of reuse: a ring linked through two arrays, so unlinking is O(1) anywhere."""

from __future__ import annotations

from collections.abc import Iterator


class FreeList:
    """Holds blocks 1..num_blocks-1 at first, in that order; 0 is the ring's anchor and never an element.

    Putting a block in twice or unlinking one that is not in is a bug of the caller that only `check` finds.
    """

    __slots__ = ("_next", "_prev", "count")

    def __init__(self, num_blocks: int) -> None:
        self.count = num_blocks - 1
        self._next = [*range(1, num_blocks), 0]
        self._prev = [num_blocks - 1, *range(num_blocks - 1)]

    def pop(self, count: int) -> list[int]:
        """The `count` blocks at the head; the caller knows that there are as many."""
        taken = []
        block = self._next[0]
        for _ in range(count):
            taken.append(block)
            block = self._next[block]
        self._next[0] = block
        self._prev[block] = 0
        self.count -= count
        return taken

    def unlink(self, block: int) -> None:
        before, after = self._prev[block], self._next[block]
        self._next[before] = after
        self._prev[after] = before
        self.count -= 1

    def put_first(self, block: int) -> None:
        self._link(0, block, self._next[0])

    def put_last(self, block: int) -> None:
        self._link(self._prev[0], block, 0)

    def __iter__(self) -> Iterator[int]:
        block = self._next[0]
        while block:
            yield block
            block = self._next[block]

    def check(self) -> list[int]:
        """All free blocks, head first. Raises RuntimeError if the links or the count are broken."""
        blocks: list[int] = []
        before = 0
        for block in self:
            if self._prev[block] != before or len(blocks) == self.count:
                raise RuntimeError(
                    f"free list: broken at block {block} behind {before}, {self.count} counted"
                )
            blocks.append(block)
            before = block
        if self._prev[0] != before or len(blocks) != self.count:
            raise RuntimeError(f"free list: ends with {before} after {len(blocks)} of {self.count} blocks")
        return blocks

    def _link(self, before: int, block: int, after: int) -> None:
        self._next[before] = self._prev[after] = block
        self._prev[block] = before
        self._next[block] = after
        self.count += 1
