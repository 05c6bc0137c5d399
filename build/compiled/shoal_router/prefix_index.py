"""Which replica holds which prompt prefix: reported by the replica itself, or believed.

Knows nothing of load. A prefix is a chain of block hashes (shoal_api.request_prefix). `holders` maps a hash
to a bit mask of replica slots, so one walk along a chain gives every replica's match. Behind each bit stands
one cache per slot: a ReportedCache while the replica's engine pushes what it holds (engine_link.py), else a
BelievedCache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shoal_router.believed_cache import BelievedCache
from shoal_router.reported_cache import ReportedCache


class PrefixIndex:
    """The caches of the replicas in slots 0, 1, 2, ...; capacities are in prompt blocks."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self._believed: dict[int, BelievedCache] = {}
        self._reported: dict[int, ReportedCache] = {}
        self._capacity: dict[int, int] = {}
        self._stamp = 0

    def add(self, slot: int, capacity_blocks: int) -> None:
        """Open an empty slot for a replica that can hold `capacity_blocks`."""
        self._believed[slot] = BelievedCache(self._holders, slot, capacity_blocks)
        self._capacity[slot] = capacity_blocks

    def remove(self, slot: int) -> None:
        """Forget the replica and its slot."""
        del self._capacity[slot]
        if (reported := self._reported.pop(slot, None)) is not None:
            reported.close()
        else:
            self._believed.pop(slot).forget()

    def forget(self, slot: int) -> None:
        """The replica lost its cache: it restarted, or somebody cleared it."""
        if (reported := self._reported.get(slot)) is not None:
            reported.keep_only(())
        else:
            self._believed[slot].forget()

    def resize(self, slot: int, capacity_blocks: int) -> None:
        """The replica's cache holds this many blocks; believed ones beyond that are forgotten, oldest first."""
        self._capacity[slot] = capacity_blocks
        if (believed := self._believed.get(slot)) is not None:
            believed.resize(capacity_blocks)

    def size(self, slot: int) -> int:
        """How many blocks the replica is thought to hold."""
        reported = self._reported.get(slot)
        return len(self._believed[slot] if reported is None else reported)

    def holders(self, block: int) -> int:
        """Bit mask of the slots that are thought to hold this block."""
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

    def stamp(self) -> int:
        """A number above all before."""
        self._stamp += 1
        return self._stamp

    def deepest(
        self, chain: Sequence[int], slots: int, most: int, pick: Callable[[int], int]
    ) -> dict[int, int]:
        """As `match`, but only of `slots`, a bit mask, and at most so many: those that hold the longest parts.

        `pick(n)` draws from range(n): of many that hold equally much, any.
        """
        holders = self._holders
        parts: list[tuple[int, int]] = []  # depth and who holds so much and no more
        depth, held = 0, slots
        for block in chain:
            still = held & holders.get(block, 0)
            if still != held:
                if depth:
                    parts.append((depth, held & ~still))
                held = still
                if not held:
                    break
            depth += 1
        if held and depth:
            parts.append((depth, held))
        depths: dict[int, int] = {}
        while parts and len(depths) < most:
            depth, mask = parts.pop()
            # Turned by a random number of slots, so that it is not always the lowest that are taken.
            turn, width = pick(mask.bit_length()), mask.bit_length()
            mask = mask >> turn | (mask & ((1 << turn) - 1)) << (width - turn)
            while mask and len(depths) < most:
                lowest = mask & -mask
                depths[(lowest.bit_length() - 1 + turn) % width] = depth
                mask ^= lowest
        return depths

    # Replicas that report

    def reported(self, slot: int) -> ReportedCache | None:
        """The cache of a replica that reports what it holds."""
        return self._reported.get(slot)

    def report(self, slot: int) -> ReportedCache:
        """The replica reports from now on: beliefs about it end."""
        if slot not in self._reported:
            self._believed.pop(slot).forget()
            self._reported[slot] = ReportedCache(self._holders, slot)
        return self._reported[slot]

    def believe(self, slot: int) -> None:
        """The replica reports no more: what it held last is believed, and ages."""
        reported = self._reported.pop(slot, None)
        if reported is not None:
            believed = self._believed[slot] = BelievedCache(self._holders, slot, self._capacity[slot])
            believed.inherit(reported.blocks, self.stamp())

    # Replicas that do not

    def last_use(self, slot: int, block: int) -> int:
        """Stamp of the block's last use on this replica; 0 when it is not believed to be there."""
        return self._believed[slot].last_use(block)

    def use(self, slot: int, chain: Sequence[int]) -> int:
        """The replica is about to compute or reuse this chain; returns the use's stamp, which only grows."""
        stamp = self.stamp()
        self._believed[slot].use(chain, stamp)
        return stamp

    def contradict(self, slot: int, stamp: int) -> int:
        """The engine had lost a block last used at `stamp`, and so all that was not used since.

        Returns how many blocks were forgotten; none of a replica that reports by now.
        """
        believed = self._believed.get(slot)
        return 0 if believed is None else believed.contradict(stamp)


def _set_depth(depths: dict[int, int], mask: int, depth: int) -> None:
    while mask:
        lowest = mask & -mask
        depths[lowest.bit_length() - 1] = depth
        mask ^= lowest
