"""Which replica is believed to hold which prompt prefix; bounded, forgets as the engines do.

Knows nothing of load. A prefix is a chain of block hashes (shoal_api.request_prefix). `holders` maps a hash
to a bit mask of replica slots, so one walk along a chain gives every replica's match. Per slot an LRU of the
engine's own size: what the engine must have evicted, the index has evicted too. Entries are beliefs, made
when a request is routed; `contradict` takes them back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixIndex:
    """Beliefs about the caches of the replicas in slots 0, 1, 2, ...; capacities are in prompt blocks."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self._replicas: dict[int, OrderedDict[int, int]] = {}  # slot -> block hash -> stamp of its last use
        self._capacity: dict[int, int] = {}
        self._stamp = 0

    def add(self, slot: int, capacity_blocks: int) -> None:
        """Open an empty slot for a replica that can hold `capacity_blocks`."""
        self._replicas[slot] = OrderedDict()
        self._capacity[slot] = capacity_blocks

    def remove(self, slot: int) -> None:
        """Forget the replica and its slot."""
        self.forget(slot)
        del self._replicas[slot], self._capacity[slot]

    def forget(self, slot: int) -> None:
        """The replica lost its cache: it restarted, or somebody cleared it."""
        self._evict(slot, len(self._replicas[slot]))

    def resize(self, slot: int, capacity_blocks: int) -> None:
        """The replica's cache holds this many blocks; the oldest beyond that are forgotten."""
        self._capacity[slot] = capacity_blocks
        self._evict(slot, len(self._replicas[slot]) - capacity_blocks)

    def size(self, slot: int) -> int:
        """How many blocks the replica is believed to hold."""
        return len(self._replicas[slot])

    def holders(self, block: int) -> int:
        """Bit mask of the slots believed to hold this block."""
        return self._holders.get(block, 0)

    def __len__(self) -> int:
        return len(self._holders)

    def match(self, chain: Sequence[int]) -> dict[int, int]:
        """How many leading blocks of `chain` each slot holds; slots that hold none are missing."""
        depths: dict[int, int] = {}
        holders = self._holders
        depth = 0
        held = -1  # all slots
        for block in chain:
            mask = holders.get(block, 0)
            if mask != held:
                still = held & mask
                if held != -1:
                    _set_depth(depths, held & ~still, depth)
                held = still
                if not held:
                    return depths
            depth += 1
        if held != -1:
            _set_depth(depths, held, depth)
        return depths

    def last_use(self, slot: int, block: int) -> int:
        """Stamp of the block's last use on this replica; 0 when it is not believed to be there."""
        return self._replicas[slot].get(block, 0)

    def use(self, slot: int, chain: Sequence[int]) -> int:
        """The replica is about to compute or reuse this chain; returns the use's stamp, which only grows."""
        self._stamp = stamp = self._stamp + 1
        lru, holders, bit, capacity = self._replicas[slot], self._holders, 1 << slot, self._capacity[slot]
        move_to_end = lru.move_to_end
        # From the tail: the head of a prompt is what other requests are likely to share, so it must age last.
        for block in reversed(chain if len(chain) <= capacity else chain[:capacity]):
            if block in lru:
                move_to_end(block)
            else:
                holders[block] = holders.get(block, 0) | bit
            lru[block] = stamp
        if len(lru) > capacity:
            self._evict(slot, len(lru) - capacity)
        return stamp

    def contradict(self, slot: int, stamp: int) -> int:
        """The engine had lost a block last used at `stamp`: an LRU has then lost all that was not used since.

        Returns how many blocks were forgotten.
        """
        lru = self._replicas[slot]
        before = len(lru)
        while lru and next(iter(lru.values())) <= stamp:
            self._evict(slot, 1)
        return before - len(lru)

    def _evict(self, slot: int, count: int) -> None:
        lru, holders, bit = self._replicas[slot], self._holders, 1 << slot
        for _ in range(count):
            block, _stamp = lru.popitem(last=False)
            left = holders[block] ^ bit
            if left:
                holders[block] = left
            else:
                del holders[block]


def _set_depth(depths: dict[int, int], mask: int, depth: int) -> None:
    while mask:
        lowest = mask & -mask
        depths[lowest.bit_length() - 1] = depth
        mask ^= lowest
