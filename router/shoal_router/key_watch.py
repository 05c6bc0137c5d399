"""Reads the file of keys, and reads it again when it changes. What it says is key_file.py's.

Kubernetes replaces a mounted Secret by turning a symbolic link, which no watch on the file itself sees; so it is asked
once a second whether it is still the same file. One that cannot be used changes nothing: the keys of before stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from shoal_router.key_file import KeyFileError, read_keys
from shoal_router.keys import Key

log = logging.getLogger(__name__)

POLL_S: Final = 1.0

Signature = tuple[int, int, int, int] | None


class KeyWatch:
    """One file. `usable` tells whether its newest content could be read; `failures` counts those that could not."""

    def __init__(self, path: str, changed: Callable[[tuple[Key, ...]], None]) -> None:
        self.path = Path(path)
        self.usable = True
        self.failures = 0
        self._changed = changed
        self._seen: Signature = None
        self._poller: asyncio.Task[None] | None = None

    def load(self) -> None:
        """Read it for the first time. Raises KeyFileError: a router that asks for keys does not start without."""
        self._seen = self._signature()
        self._changed(self._read())

    def start(self) -> None:
        """Look for changes from now on."""
        self._poller = asyncio.get_running_loop().create_task(self._poll())

    async def stop(self) -> None:
        if self._poller is not None:
            self._poller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poller

    async def check(self) -> None:
        """Read the file anew if it is another one than last time."""
        signature = self._signature()
        if signature == self._seen:
            return
        self._seen = signature
        try:
            keys = await asyncio.to_thread(self._read)  # thousands of keys take a while
        except KeyFileError as error:
            self.usable = False
            self.failures += 1
            log.error("the keys of before stay: %s", error)
            return
        self.usable = True
        self._changed(keys)
        log.info("%s: %d keys", self.path, len(keys))

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.check()
            except Exception:
                log.exception("bug while looking for new keys")

    def _signature(self) -> Signature:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _read(self) -> tuple[Key, ...]:
        try:
            return read_keys(self.path.read_bytes())
        except OSError as error:
            raise KeyFileError(f"{self.path} cannot be read: {error.strerror}") from None
        except KeyFileError as error:
            raise KeyFileError(f"{self.path}: {error}") from None
