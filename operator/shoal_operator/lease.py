"""Which operator may write: a coordination.k8s.io Lease, held by one process at a time.

Clocks of different nodes are not compared: another holder counts as gone when its lease has not changed for
`DURATION_S` on our own clock. The holder stops writing when it could not renew for `RENEW_DEADLINE_S`, which is
shorter, so that two never write at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from shoal_api.kube import ApiError, Object

log = logging.getLogger(__name__)

DURATION_S = 15.0
RENEW_DEADLINE_S = 10.0
PERIOD_S = 2.0

Spec = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """The lease's spec as last read, and when on our clock it last differed."""

    spec: Spec | None = None
    since_s: float = 0.0

    def after(self, spec: Spec, now_s: float) -> Seen:
        return self if spec == self.spec else Seen(spec, now_s)


def may_take(seen: Seen, identity: str, now_s: float) -> bool:
    """Whether `identity` may write itself into the lease: it is its own, free, or its holder is gone."""
    holder = (seen.spec or {}).get("holderIdentity")
    if not holder or holder == identity:
        return True
    return now_s - seen.since_s >= DURATION_S


def taken(spec: Spec | None, identity: str, at: datetime) -> Spec:
    """The lease's spec with `identity` as holder, from `at` on."""
    old = spec or {}
    stamp = at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    new = {**old, "holderIdentity": identity, "leaseDurationSeconds": int(DURATION_S), "renewTime": stamp}
    if old.get("holderIdentity") != identity:
        new["acquireTime"] = stamp
        new["leaseTransitions"] = int(old.get("leaseTransitions") or 0) + 1 if old else 0
    return new


class LeaseStore(Protocol):
    """The Lease object; both raise ApiError. `write` refuses (409) when the object is not as it was read."""

    async def read(self) -> Object | None: ...

    async def write(self, spec: Spec, read: Object | None) -> Object: ...


class Lease:
    """Tries to hold the lease until cancelled; `held` says whether this process may write now."""

    def __init__(
        self,
        store: LeaseStore,
        identity: str,
        *,
        now: Callable[[], float] = time.monotonic,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._identity = identity
        self._now = now
        self._clock = clock
        self._sleep = sleep
        self._seen = Seen()
        self._renewed_s: float | None = None

    @property
    def held(self) -> bool:
        return self._renewed_s is not None and self._now() - self._renewed_s < RENEW_DEADLINE_S

    async def run(self, on_acquired: Callable[[], None]) -> None:
        """Acquire and renew; calls `on_acquired` each time that this process becomes the holder."""
        while True:
            before = self.held
            try:
                await self._step()
            except ApiError as error:
                log.warning("lease: %s", error)
            if self.held and not before:
                log.info("holding the lease as %s", self._identity)
                on_acquired()
            await self._sleep(PERIOD_S)

    async def release(self) -> None:
        """Let a successor begin at once; without it, it waits for `DURATION_S`."""
        if not self.held:
            return
        self._renewed_s = None
        found = await self._store.read()
        if found is not None and found["spec"].get("holderIdentity") == self._identity:
            await self._store.write({**found["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}, found)

    async def _step(self) -> None:
        begun_s = self._now()  # the lease counts from before the write: a slow reply must not lengthen it
        found = await self._store.read()
        spec = None if found is None else found.get("spec", {})
        self._seen = replace(self._seen, spec=None) if spec is None else self._seen.after(spec, begun_s)
        if not may_take(self._seen, self._identity, begun_s):
            self._renewed_s = None
            return
        written = await self._store.write(taken(spec, self._identity, self._clock()), found)
        self._seen = self._seen.after(written["spec"], begun_s)
        self._renewed_s = begun_s
