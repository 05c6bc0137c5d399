"""Ask a local engine or router how it is, with the requests that a kubelet would make. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

READY_TIMEOUT_S = 2.0
HEALTH_TIMEOUT_S = 5.0
BEFORE_LOADING = "starting"  # what an engine calls the phase in which it imports its libraries


@dataclass(frozen=True, slots=True)
class Ready:
    """It takes requests. `replicas`: how many ready ones a router knows; 0 from an engine."""

    replicas: int = 0


@dataclass(frozen=True, slots=True)
class Loading:
    """Up, but not ready. `phase` is empty before the first; `done` of `total` as in ReplicaState."""

    phase: str = ""
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Silent:
    """No answer, or none that makes sense; `why` is for the user."""

    why: str


Readiness = Ready | Loading | Silent


class Probe:
    """The probes of one process at `url` (http://host:port)."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def readiness(self) -> Readiness:
        try:
            reply = await self._client.get(f"{self._url}/ready", timeout=READY_TIMEOUT_S)
        except httpx.HTTPError as error:
            return Silent(type(error).__name__)
        if reply.status_code == 200:
            return Ready(_count(_fields(reply).get("replicas")))
        if reply.status_code != 503:
            return Silent(f"/ready answers {reply.status_code}")
        body = _fields(reply)
        phase = str(body.get("phase") or "").removeprefix(BEFORE_LOADING)
        return Loading(phase, _count(body.get("done")), _count(body.get("total")))

    async def models(self) -> list[str]:
        """The ids that /v1/models lists; none while it does not answer."""
        try:
            reply = await self._client.get(f"{self._url}/v1/models", timeout=READY_TIMEOUT_S)
        except httpx.HTTPError:
            return []
        return [str(model["id"]) for model in _fields(reply).get("data", [])]

    async def alive(self) -> bool:
        """Whether /health answers 200 in time; it tells of the step heartbeat, not of the load."""
        try:
            reply = await self._client.get(f"{self._url}/health", timeout=HEALTH_TIMEOUT_S)
        except httpx.HTTPError:
            return False
        return reply.status_code == 200


def _fields(reply: httpx.Response) -> dict[str, Any]:
    try:
        body = reply.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _count(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0
