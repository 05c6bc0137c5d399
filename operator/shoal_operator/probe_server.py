"""/healthz and /metrics of the operator, for the kubelet and Prometheus. Measures nothing itself."""

from __future__ import annotations

import asyncio
import json
from typing import Protocol

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from shoal_api.mirror import Mirror

STALE_S = 180.0  # a mirror relists far more often: a longer silence is a watch that died


class Watched(Protocol):
    """What the probes look at; controller.py in production."""

    @property
    def mirrors(self) -> list[Mirror]: ...

    @property
    def holds_lease(self) -> bool: ...


def exposition(watched: Watched) -> CollectorRegistry:
    """The operator's metrics; each is read when it is scraped."""
    registry = CollectorRegistry()
    age = Gauge(
        "shoal_operator_watch_age_seconds",
        "Seconds since the API server last said anything about the most silent watch.",
        registry=registry,
    )
    age.set_function(lambda: watch_age_s(watched))
    leader = Gauge(
        "shoal_operator_leader", "Whether this process may write (1) or stands by (0).", registry=registry
    )
    leader.set_function(lambda: float(watched.holds_lease))
    return registry


def watch_age_s(watched: Watched) -> float:
    """Age of the most silent watch."""
    return max((mirror.age_s for mirror in watched.mirrors), default=0.0)


class ProbeServer:
    """Port 0 takes a free one; `port` says which, once `started` is set."""

    def __init__(self, watched: Watched, port: int) -> None:
        self._watched = watched
        self.port = port
        self.started = asyncio.Event()
        self._registry = exposition(watched)

    async def run(self) -> None:
        """Serve until cancelled. Raises OSError when the port is taken."""
        app = web.Application()
        app.add_routes([web.get("/healthz", self._health), web.get("/metrics", self._metrics)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, None, self.port)
            await site.start()
            # With port 0 each address family gets one of its own; IPv4's addresses have two fields.
            self.port = min(runner.addresses, key=len)[1]
            self.started.set()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        age_s = watch_age_s(self._watched)
        body = json.dumps({"watch_age_s": round(age_s, 1), "leader": self._watched.holds_lease})
        return web.Response(
            text=body, status=200 if age_s < STALE_S else 503, content_type="application/json"
        )

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )
