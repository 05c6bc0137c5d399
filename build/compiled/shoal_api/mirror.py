"""A collection of Kubernetes objects, kept in memory by list and watch. Knows no kind and decides nothing.

Level-triggered: `changed(key, object)` tells that an object is new, differs or is gone (None), never what happened.
A watch can fall silent without an error, so every watch ends after `relist_s` and a silent one after `silence_s`;
then everything is listed anew and compared.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from shoal_api.kube import ApiError, ApiServer, Object

log = logging.getLogger(__name__)

PAGE_OBJECTS = 500
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0

Changed = Callable[[str, Object | None], None]


def key_of(found: Object) -> str:
    """`namespace/name`; the key of an object in its mirror."""
    metadata = found["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata['name']}"


class Mirror:
    """`path` is that of the collection, such as /api/v1/namespaces/x/pods; run `run()` as a task."""

    def __init__(
        self,
        api: ApiServer,
        path: str,
        changed: Changed,
        *,
        selector: str = "",
        relist_s: float = 300.0,
        silence_s: float = 75.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._path = path
        self._changed = changed
        self._selector = {"labelSelector": selector} if selector else {}
        self._relist_s = relist_s
        self._silence_s = silence_s
        self._now = now
        self._last_heard_s = now()
        self.objects: dict[str, Object] = {}
        self.synced = asyncio.Event()

    @property
    def age_s(self) -> float:
        """Seconds since the API server last said anything about this collection."""
        return self._now() - self._last_heard_s

    async def run(self) -> None:
        """List and watch until cancelled; errors of the API server only delay it."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                version = await self._list()
                pause_s = FIRST_PAUSE_S
                await self._watch(version)
            except ApiError as error:
                log.warning("watching %s: %s; trying again", self._path, error)
                await asyncio.sleep(max(error.retry_after_s or 0.0, pause_s * random.uniform(0.5, 1.0)))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _list(self) -> str:
        found: dict[str, Object] = {}
        page: dict[str, str] = {}
        while True:
            params = {"limit": str(PAGE_OBJECTS), **self._selector, **page}
            reply = await self._api.request("GET", self._path, params=params)
            found.update((key_of(each), each) for each in reply["items"])
            if not (token := reply["metadata"].get("continue")):
                break
            page = {"continue": token}
        self._last_heard_s = self._now()
        for key in [key for key in self.objects if key not in found]:
            self._remove(key)
        for key, each in found.items():
            self._put(key, each)
        self.synced.set()
        return str(reply["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> None:
        """Returns when the watch ends in an orderly way or its version has become too old."""
        deadline_s = self._now() + self._relist_s
        while (left_s := deadline_s - self._now()) > 0:
            params = {
                "watch": "true",
                "allowWatchBookmarks": "true",
                "resourceVersion": version,
                "timeoutSeconds": str(max(1, int(left_s))),
                **self._selector,
            }
            async for event in self._api.stream(self._path, params=params, silence_s=self._silence_s):
                self._last_heard_s = self._now()
                kind, each = event["type"], event["object"]
                if kind == "ERROR":
                    log.info("watching %s: %s; listing anew", self._path, each.get("message"))
                    return
                version = each["metadata"]["resourceVersion"]
                if kind == "DELETED":
                    self._remove(key_of(each))
                elif kind != "BOOKMARK":
                    self._put(key_of(each), each)

    def _put(self, key: str, each: Object) -> None:
        old = self.objects.get(key)
        self.objects[key] = each
        if old is None or old["metadata"]["resourceVersion"] != each["metadata"]["resourceVersion"]:
            self._changed(key, each)

    def _remove(self, key: str) -> None:
        if self.objects.pop(key, None) is not None:
            self._changed(key, None)
