"""What one replica holds as it reports itself, and what it is about to hold: the claims of requests under way.

A claim is made when a request is routed, so that a burst of equal prompts stays together before the first of
them is computed. It ends with its request, but not at once: the update that reports the request's blocks may
still be on its way. The second update after the end was surely built later, and from then on the report alone
counts. Knows no sizes and no ages: the engine evicts, and says so. prefix_index.py owns it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


class ReportedCache:
    """The replica's bit stands in `holders` for what is stored or claimed."""

    __slots__ = ("_bit", "_claims", "_ended", "_ended_before", "_holders", "_stored")

    def __init__(self, holders: dict[int, int], slot: int) -> None:
        self._holders = holders
        self._bit = 1 << slot
        self._stored: dict[int, None] = {}  # in the order in which they were reported
        self._claims: dict[int, int] = {}  # block hash -> requests that are to compute it
        self._ended: list[tuple[Sequence[int], int]] = []  # since the last update
        self._ended_before: list[tuple[Sequence[int], int]] = []  # between the two updates before

    def __len__(self) -> int:
        return len(self._stored.keys() | self._claims.keys())

    @property
    def stored(self) -> Collection[int]:
        """What the replica has reported, oldest first."""
        return self._stored.keys()

    @property
    def blocks(self) -> Iterable[int]:
        """All that it is thought to hold, oldest first."""
        return {**self._stored, **dict.fromkeys(self._claims)}

    # Reports

    def store(self, blocks: Iterable[int]) -> None:
        """The replica has stored these."""
        stored, holders, bit = self._stored, self._holders, self._bit
        for block in blocks:
            stored[block] = None
            holders[block] = holders.get(block, 0) | bit

    def evict(self, blocks: Iterable[int]) -> None:
        """The replica has lost these; requests under way that will compute them anew keep their claims."""
        stored, claims = self._stored, self._claims
        for block in blocks:
            if block in stored:
                del stored[block]
                if block not in claims:
                    self._clear(block)

    def keep_only(self, blocks: Collection[int]) -> None:
        """A snapshot holds these and nothing else; `store` then adds what is new."""
        self.evict([block for block in self._stored if block not in blocks])

    def updated(self) -> None:
        """An update has been applied: claims that ended before the last one are over."""
        stored, claims = self._stored, self._claims
        for chain, start in self._ended_before:
            for block in chain[start:]:
                left = claims[block] - 1
                if left:
                    claims[block] = left
                    continue
                del claims[block]
                if block not in stored:
                    self._clear(block)
        self._ended_before, self._ended = self._ended, []

    # Requests

    def claim(self, chain: Sequence[int], depth: int) -> int:
        """A request is on its way whose first `depth` blocks are held; returns from which block on it claims."""
        stored, claims, holders, bit = self._stored, self._claims, self._holders, self._bit
        # What only other requests claim is claimed once more: they may fail.
        while depth and chain[depth - 1] not in stored:
            depth -= 1
        for block in chain[depth:]:
            count = claims.get(block, 0)
            claims[block] = count + 1
            if not count:
                holders[block] = holders.get(block, 0) | bit
        return depth

    def release(self, chain: Sequence[int], start: int) -> None:
        """That request is over, one way or another; `start` is what `claim` returned."""
        if start < len(chain):
            self._ended.append((chain, start))

    def close(self) -> None:
        """Take all bits back: the replica has left."""
        for block in self.blocks:
            self._clear(block)
        self._stored, self._claims, self._ended, self._ended_before = {}, {}, [], []

    def _clear(self, block: int) -> None:
        left = self._holders[block] ^ self._bit
        if left:
            self._holders[block] = left
        else:
            del self._holders[block]
