"""What one replica is believed to hold when it does not say: an LRU of the engine's own size.

Beliefs are made when a request is routed; what an LRU of that size must have evicted is evicted here too.
Chooses nothing; prefix_index.py owns it, and `holders` is the index's own map.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BelievedCache:
    """Blocks by last use, oldest first; the replica's bit stands in `holders` for exactly these."""

    __slots__ = ("_bit", "_capacity", "_holders", "_lru")

    def __init__(self, holders: dict[int, int], slot: int, capacity_blocks: int) -> None:
        self._holders = holders
        self._bit = 1 << slot
        self._capacity = capacity_blocks
        self._lru: OrderedDict[int, int] = OrderedDict()  # block hash -> stamp of its last use

    def __len__(self) -> int:
        return len(self._lru)

    def last_use(self, block: int) -> int:
        """Stamp of the block's last use; 0 when it is not believed to be there."""
        return self._lru.get(block, 0)

    def resize(self, capacity_blocks: int) -> None:
        """The engine's cache has this size; the oldest beyond it are forgotten."""
        self._capacity = capacity_blocks
        self._evict(len(self._lru) - capacity_blocks)

    def forget(self) -> None:
        self._evict(len(self._lru))

    def inherit(self, blocks: Iterable[int], stamp: int) -> None:
        """Believe what the replica reported until now, oldest first; its bits stand in the index already."""
        self._lru.update(dict.fromkeys(blocks, stamp))
        self._evict(len(self._lru) - self._capacity)

    def use(self, chain: Sequence[int], stamp: int) -> None:
        """The replica is about to compute or reuse this chain."""
        lru, holders, bit, capacity = self._lru, self._holders, self._bit, self._capacity
        move_to_end = lru.move_to_end
        # From the tail: the head of a prompt is what other requests are likely to share, so it must age last.
        for block in reversed(chain if len(chain) <= capacity else chain[:capacity]):
            if block in lru:
                move_to_end(block)
            else:
                holders[block] = holders.get(block, 0) | bit
            lru[block] = stamp
        if len(lru) > capacity:
            self._evict(len(lru) - capacity)

    def contradict(self, stamp: int) -> int:
        """The engine had lost a block last used at `stamp`: an LRU has then lost all that was not used since.

        Returns how many blocks were forgotten.
        """
        lru = self._lru
        before = len(lru)
        while lru and next(iter(lru.values())) <= stamp:
            self._evict(1)
        return before - len(lru)

    def _evict(self, count: int) -> None:
        lru, holders, bit = self._lru, self._holders, self._bit
        for _ in range(count):
            block, _stamp = lru.popitem(last=False)
            left = holders[block] ^ bit
            if left:
                holders[block] = left
            else:
                del holders[block]
