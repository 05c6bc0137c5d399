"""What is to be looked at again, and when: one entry per key, never two workers on one key. Knows no work itself.

Like controller-runtime's queue: a key that is added while it is worked on is worked on once more afterwards, a key
that failed waits longer each time, and a key added many times is worked on once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from shoal_api.kube import ApiError

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 60.0

Work = Callable[[str], Awaitable[float | None]]


def backoff_s(failures: int) -> float:
    """The pause after so many failures in a row."""
    return min(FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 30), LONGEST_BACKOFF_S)


class WorkQueue:
    """`work(key)` returns in how many seconds to come back without cause, or None; what it raises delays the key."""

    def __init__(self, work: Work, *, concurrency: int) -> None:
        self._work = work
        self._slots = asyncio.Semaphore(concurrency)
        self._due: dict[str, asyncio.TimerHandle] = {}  # keys that wait for their time
        self._running: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()  # running keys that were added meanwhile
        self._failures: dict[str, int] = {}
        self._closed = False

    def __len__(self) -> int:
        """Keys that are due or worked on, or wait for their time."""
        return len(self._due.keys() | self._running.keys())

    def add(self, key: str, after_s: float = 0.0) -> None:
        """Work on `key` in `after_s` seconds, or when it is due already, whichever comes first."""
        if self._closed:
            return
        if key in self._running and after_s <= 0.0:
            self._again.add(key)
            return
        loop = asyncio.get_running_loop()
        timer = self._due.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + after_s:
                return
            timer.cancel()
        self._due[key] = loop.call_later(after_s, self._start, key)

    def forget(self, key: str) -> None:
        """The object is gone: no timer and no failures are kept for it."""
        self._failures.pop(key, None)
        self._again.discard(key)
        if (timer := self._due.pop(key, None)) is not None:
            timer.cancel()

    async def close(self) -> None:
        """Stop: waiting keys are dropped, running work is cancelled."""
        self._closed = True
        for timer in self._due.values():
            timer.cancel()
        self._due.clear()
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _count_failure(self, key: str) -> float:
        """How long to wait after one more failure."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        return backoff_s(failures)

    def _start(self, key: str) -> None:
        self._due.pop(key, None)
        if key in self._running:
            self._again.add(key)
        else:
            self._running[key] = asyncio.get_running_loop().create_task(self._run(key))

    async def _run(self, key: str) -> None:
        after_s: float | None = None
        try:
            async with self._slots:
                self._again.discard(key)  # what was added until here is covered by the work that begins now
                after_s = await self._work(key)
            self._failures.pop(key, None)
        except ApiError as error:
            # Not before the API server says so: it is the one that is overloaded.
            after_s = max(self._count_failure(key), error.retry_after_s or 0.0)
            log.warning("%s: %s; again in %g s", key, error, after_s)
        except Exception:
            after_s = self._count_failure(key)
            log.exception("%s failed; again in %g s", key, after_s)
        finally:
            del self._running[key]
        if key in self._again:
            self._again.discard(key)
            # Not before its back-off is over: a key that fails and is added all the time must not spin.
            self.add(key, after_s if after_s is not None and key in self._failures else 0.0)
        elif after_s is not None:
            self.add(key, after_s)
