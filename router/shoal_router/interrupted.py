"""Streams whose replica died while no other could go on with them. They wait; their clients see a pause.

Whoever waits here has been admitted and has seen a part of its answer: it stands in no queue and is counted as no
waiting request. Sends nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

PING_EVERY_S: Final = 15.0


class Stream(Protocol):
    """A stream that can go on or be given up."""

    def attempt(self) -> None:
        """Look for a replica; comes back to `Interrupted.wait` when there is none."""

    def ping(self) -> None:
        """Keep the client waiting."""

    def give_up(self) -> None: ...


class Interrupted:
    """All such streams of one router, the longest waiting first."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.streams: dict[Stream, float] = {}  # until when each waits
        self._now = now
        self._pinged_s = 0.0
        self._trying = False

    def wait(self, stream: Stream, until_s: float) -> None:
        """Wait for a replica until then at most."""
        if not self.streams:
            self._pinged_s = self._now()
        self.streams[stream] = until_s

    def drop(self, stream: Stream) -> None:
        """It waits no longer."""
        self.streams.pop(stream, None)

    def changed(self) -> None:
        """Perhaps a replica can be had."""
        if self.streams and not self._trying:
            self._trying = True  # in a turn of its own: who reports the change is not done with it yet
            asyncio.get_running_loop().call_soon(self._try_all)

    def sweep(self) -> None:
        """Give up who has waited for too long, and let the others try."""
        now = self._now()
        for stream, until_s in list(self.streams.items()):
            if now >= until_s:
                self.drop(stream)
                stream.give_up()
        if now - self._pinged_s >= PING_EVERY_S:
            self._pinged_s = now
            for stream in self.streams:
                stream.ping()
        self.changed()

    def _try_all(self) -> None:
        self._trying = False
        for stream in list(self.streams):
            if stream in self.streams:
                stream.attempt()
