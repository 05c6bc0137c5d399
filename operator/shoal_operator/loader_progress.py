"""How far model-loaders are, from GET /progress of their pods. A hint for people: nothing is decided by it.

A pod that does not answer is unknown, never an error: it may have ended a moment ago.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

import httpx

from shoal_api.names import PORT_ENGINE_HTTP
from shoal_operator.world import Download, DownloadState, Replica

PERIOD_S: Final = 10.0  # each answer that differs is a write of the status
LIMIT_S: Final = 1.0  # for all pods together: they are asked at once
KEPT_S: Final = 60.0  # a pod that falls silent keeps its last word for so long
NEWEST_SHARE: Final = 0.5  # of the last period in the rate
MESSAGE_CHARS: Final = 1024
BODY_BYTES: Final = 64 * 1024
MOST_BYTES: Final = 2**50  # what a status has room for


@dataclass(frozen=True, slots=True)
class Heard:
    """The last word of one pod, and when it came on this process's clock."""

    download: Download
    at_s: float


class LoaderProgress:
    """Remembers what pods said; `now` is monotonic seconds."""

    def __init__(self, port: int = PORT_ENGINE_HTTP, now: Callable[[], float] = time.monotonic) -> None:
        self._port = port
        self._now = now
        self._asked_s: dict[str, float] = {}
        self._heard: dict[str, Heard] = {}

    async def read(self, replicas: Iterable[Replica]) -> tuple[Download, ...]:
        """Of the replicas that load, those whose state is known. Takes LIMIT_S at most, and mostly nothing."""
        now_s = self._now()
        loading = [each for each in replicas if each.loading and each.ip]
        due = [each for each in loading if now_s - self._asked_s.get(each.uid, -PERIOD_S) >= PERIOD_S]
        if due:
            self._forget_before(now_s - KEPT_S)
            self._asked_s |= {each.uid: now_s for each in due}
            # Straight to the pods: no proxy of the environment, no certificates.
            async with httpx.AsyncClient(verify=False, trust_env=False) as client:
                answers = await asyncio.gather(*(self._asked(client, each) for each in due))
            self._hear(zip(due, answers, strict=True), now_s)
        return tuple(self._heard[each.uid].download for each in loading if each.uid in self._heard)

    async def _asked(self, client: httpx.AsyncClient, replica: Replica) -> Download | None:
        host = f"[{replica.ip}]" if ":" in (replica.ip or "") else replica.ip
        body = b""
        try:
            async with (
                asyncio.timeout(LIMIT_S),
                client.stream("GET", f"http://{host}:{self._port}/progress", timeout=None) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    return None
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > BODY_BYTES:
                        return None
            return download_of(replica.name, json.loads(body))
        except (httpx.HTTPError, TimeoutError, ValueError, RecursionError):
            return None

    def _hear(self, answers: Iterable[tuple[Replica, Download | None]], now_s: float) -> None:
        for replica, download in answers:
            if download is not None:
                rate = _rate(self._heard.get(replica.uid), download, now_s)
                self._heard[replica.uid] = Heard(replace(download, bytes_per_s=rate), now_s)

    def _forget_before(self, oldest_s: float) -> None:
        self._heard = {uid: heard for uid, heard in self._heard.items() if heard.at_s >= oldest_s}
        self._asked_s = {uid: at_s for uid, at_s in self._asked_s.items() if at_s >= oldest_s}


def download_of(pod: str, answer: Any) -> Download:
    """From the JSON of an answer. ValueError for what no loader says: the pod may be of another version, or ill."""
    if not isinstance(answer, dict) or answer.get("state") not in get_args(DownloadState):
        raise ValueError("no state")
    total, done = answer.get("bytes_total"), answer.get("bytes_done")
    if not (total is None or _is_amount(total)) or not _is_amount(done):
        raise ValueError("no amounts of bytes")
    return Download(pod, answer["state"], total, done, str(answer.get("message", ""))[:MESSAGE_CHARS])


def _is_amount(value: object) -> bool:
    return type(value) is int and 0 <= value <= MOST_BYTES


def _rate(before: Heard | None, download: Download, now_s: float) -> float | None:
    """Bytes a second: the last period and the time before it; None at first, and after bytes were thrown away."""
    if before is None or download.bytes_done is None or before.download.bytes_done is None:
        return None
    new = (download.bytes_done - before.download.bytes_done) / max(now_s - before.at_s, 1e-3)
    if new < 0:
        return None
    old = before.download.bytes_per_s
    return new if old is None else NEWEST_SHARE * new + (1 - NEWEST_SHARE) * old
