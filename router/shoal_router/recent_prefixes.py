"""Which beginnings of prompts have been asked for lately: one that comes again is worth keeping in one place.

Knows nothing of replicas or caches, and outlives what they evict.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MOST: Final = 16_384


class RecentPrefixes:
    """The hashes that were noted last, at most so many."""

    def __init__(self, most: int = MOST) -> None:
        self._noted: OrderedDict[int, None] = OrderedDict()
        self._most = most

    def __len__(self) -> int:
        return len(self._noted)

    def note(self, prefix: int) -> bool:
        """Whether it had been noted before; from now on it is."""
        noted = self._noted
        if prefix in noted:
            noted.move_to_end(prefix)
            return True
        noted[prefix] = None
        if len(noted) > self._most:
            noted.popitem(last=False)
        return False
