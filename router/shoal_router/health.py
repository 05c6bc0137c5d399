"""Ask each replica how it is and what it serves, and let requests tell when it fails. Chooses nothing.

One task per replica: /ready, then /v1/models, and /metrics. One whose engine pushes its load (engine_link.py) is asked
every fifth time, and never for /metrics.
A fault seen by a request ejects its replica at once; the task is woken and asks again after the pause of its
standing, so a replica that blinked is back within a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from shoal_router import standing as standings
from shoal_router.control import Fetched, fetch
from shoal_router.endpoints import Endpoint, EndpointSet
from shoal_router.engine_metrics import read_metrics
from shoal_router.errors import BadReply
from shoal_router.model_listing import read_listing
from shoal_router.standing import Outcome, State

log = logging.getLogger(__name__)

MODELS_EVERY: Final = (
    5  # health checks; whenever a replica becomes ready; and a linked one is asked no more often
)


@dataclass(frozen=True, slots=True)
class HealthSettings:
    interval_s: float = 1.0
    timeout_s: float = 2.0
    api_key: str | None = None  # for replicas that guard /v1/models


class Health:
    """Keeps every endpoint's standing and report true.

    `on_restart` runs when an engine has lost its cache.
    """

    def __init__(
        self,
        settings: HealthSettings,
        endpoints: EndpointSet,
        *,
        now: Callable[[], float],
        on_restart: Callable[[Endpoint], None],
    ) -> None:
        self._settings = settings
        self._endpoints = endpoints
        self._now = now
        self._on_restart = on_restart
        self._tasks: dict[Endpoint, asyncio.Task[None]] = {}
        self._wakes: dict[Endpoint, asyncio.Event] = {}
        endpoints.on_add.append(self._watch)
        endpoints.on_remove.append(self._unwatch)

    async def stop(self) -> None:
        """End all tasks."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def observe(self, endpoint: Endpoint, outcome: Outcome) -> None:
        """An attempt of a request said something about its replica."""
        if outcome is Outcome.SUCCESS and endpoint.standing is standings.HEALTHY:
            return
        if outcome not in (Outcome.SUCCESS, Outcome.NOT_READY):
            endpoint.tally.faults += 1
        self._set(
            endpoint,
            standings.after_outcome(endpoint.standing, outcome, self._now()),
            f"outcome of a request: {outcome.value}",
        )
        wake = self._wakes.get(endpoint)
        if wake is not None and outcome is not Outcome.SUCCESS:
            wake.set()

    def _set(self, endpoint: Endpoint, standing: standings.Standing, why: str) -> None:
        if self._endpoints.set_standing(endpoint, standing):
            log.info("replica %s is %s: %s", endpoint.name, standing.state.value, why)

    def _watch(self, endpoint: Endpoint) -> None:
        self._wakes[endpoint] = asyncio.Event()
        self._tasks[endpoint] = asyncio.get_running_loop().create_task(self._run(endpoint))

    def _unwatch(self, endpoint: Endpoint) -> None:
        del self._wakes[endpoint]
        self._tasks.pop(endpoint).cancel()

    async def _run(self, endpoint: Endpoint) -> None:
        checks = 0
        while True:
            in_full = checks % MODELS_EVERY == 0
            try:
                # One that pushes says itself, and sooner, that it is ready no more; each check is a new connection.
                if in_full or not endpoint.linked or endpoint.state is not State.HEALTHY:
                    await self._check(endpoint, ask_models=in_full)
            except Exception:
                log.exception("bug in the health check of %s", endpoint.name)
            checks += 1
            await self._pause(endpoint, self._wakes[endpoint])

    async def _check(self, endpoint: Endpoint, *, ask_models: bool) -> None:
        known = endpoint.state is State.HEALTHY and bool(endpoint.report.models)
        if await self._check_ready(endpoint):
            await self._check_report(endpoint, ask_models or not known)
            self._set(endpoint, standings.after_ready(endpoint.standing, self._now()), "it is ready")

    async def _pause(self, endpoint: Endpoint, wake: asyncio.Event) -> None:
        wake.clear()
        pause_s = self._settings.interval_s
        if endpoint.state is not State.SUSPECT:
            try:
                async with asyncio.timeout(pause_s):
                    await wake.wait()
            except TimeoutError:
                return
        if endpoint.state is State.SUSPECT:
            pause_s = max(endpoint.standing.pause_until_s - self._now(), 0.01)
        await asyncio.sleep(pause_s)

    async def _check_ready(self, endpoint: Endpoint) -> bool:
        try:
            status = (await self._fetch(endpoint, "/ready")).status
            if status == 404:  # other engines have /health only
                status = (await self._fetch(endpoint, "/health")).status
        except (OSError, BadReply) as error:
            hard = not isinstance(error, TimeoutError)
            fallen = standings.after_unreachable(endpoint.standing, self._now(), hard=hard)
            self._set(endpoint, fallen, f"health check failed: {error or 'no answer in time'}")
            if isinstance(error, ConnectionRefusedError):
                self._on_restart(endpoint)  # nobody listens there: the engine and its cache are gone
            return False
        if status != 200:
            self._set(endpoint, standings.after_not_ready(), f"it answers {status} to /ready")
        return status == 200

    async def _check_report(self, endpoint: Endpoint, ask_models: bool) -> None:
        before = endpoint.report
        try:
            await self._poll_load(endpoint)
            if ask_models:
                models = await self._fetch(endpoint, "/v1/models")
                if models.status == 200:
                    endpoint.report = replace(endpoint.report, models=read_listing(models.body))
                else:
                    log.warning("replica %s answers %d to /v1/models", endpoint.name, models.status)
        except (OSError, BadReply, msgspec.MsgspecError, ValueError) as error:
            log.warning("replica %s: cannot read its models or metrics: %s", endpoint.name, error)
        report = endpoint.report
        if (before.models, before.kv_tokens, before.grpc_port) != (
            report.models,
            report.kv_tokens,
            report.grpc_port,
        ):
            self._endpoints.changed()

    async def _poll_load(self, endpoint: Endpoint) -> None:
        own = endpoint.in_flight
        if endpoint.linked:
            return  # the engine says all this itself, sooner
        metrics = await self._fetch(endpoint, "/metrics")
        if metrics.status != 200 or endpoint.linked:
            return
        before, report = endpoint.report, read_metrics(metrics.body, endpoint.report)
        endpoint.reported_s = self._now()
        # Own requests come and go while it answers; only what exceeds both counts is surely somebody else's.
        endpoint.take(report, max(own, endpoint.in_flight))
        self._endpoints.loaded()
        if before.started_at_s and report.started_at_s != before.started_at_s:
            log.info("replica %s has restarted; its cache is empty", endpoint.name)
            self._on_restart(endpoint)

    async def _fetch(self, endpoint: Endpoint, path: str) -> Fetched:
        settings = self._settings
        return await fetch(endpoint.pool, path, settings.timeout_s, settings.api_key)
