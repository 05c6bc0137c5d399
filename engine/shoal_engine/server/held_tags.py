"""The tags that the engine's cache holds, and what has changed lately, for any number of readers. No sockets.

A reader remembers a number, how far it has read; nothing is kept for it. Changes beyond the last MOST_CHANGES are
forgotten: who has read so little begins anew with all tags.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from shoal_engine.messages import TagChanges

MOST_CHANGES = 65_536  # half a megabyte of an update


class HeldTags:
    """`held` is what the changes so far amount to; `end` counts them."""

    def __init__(self, most_changes: int = MOST_CHANGES) -> None:
        self.held: set[int] = set()
        self.end = 0
        self._changes: deque[tuple[int, bool]] = deque(maxlen=most_changes)  # tag, whether it was stored

    def apply(self, changes: TagChanges) -> None:
        """What the engine tells."""
        self.held.difference_update(changes.evicted)
        self.held.update(changes.stored)
        self._changes.extend((tag, False) for tag in changes.evicted)
        self._changes.extend((tag, True) for tag in changes.stored)
        self.end += len(changes.evicted) + len(changes.stored)

    def since(self, place: int) -> TagChanges | None:
        """What has changed since `end` was `place`, the last word on each tag; None if that is forgotten."""
        count = self.end - place
        if count > len(self._changes):
            return None
        last: dict[int, bool] = {}
        for tag, stored in islice(reversed(self._changes), count):
            last.setdefault(tag, stored)
        stored_tags = [tag for tag, stored in last.items() if stored]
        return TagChanges(stored_tags, [tag for tag, stored in last.items() if not stored])
