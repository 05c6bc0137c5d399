"""The operator put together: what it watches, who may write, and the queue between. Decides nothing.

kopf watches the LLMDeployments (handlers.py calls `look_at`); pods and routers are mirrored here with label selectors,
because kopf would read every pod of a namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random

from shoal_api.kube import ApiError, ApiServer, Object
from shoal_api.mirror import Mirror
from shoal_api.names import LABEL_ROLE, LEASE, ROLE_ENGINE, ROLE_PREFETCH
from shoal_api.operator_options import OperatorOptions
from shoal_api.router_state_pb2 import State
from shoal_operator.cluster import Cluster, LeaseObject, path_of
from shoal_operator.lease import Lease
from shoal_operator.reconcile import Reconciler, ReconcileSettings
from shoal_operator.router_links import RouterLinks
from shoal_operator.triggers import (
    Outline,
    changed_keys,
    deployment_key,
    expected_routers,
    outlines,
    serving_routers,
)
from shoal_operator.work_queue import WorkQueue

log = logging.getLogger(__name__)

RELEASE_S = 5.0  # an API server that does not answer must not hold up the end of the process
STANDBY_S = 2.0  # how often a process that may not write looks whether it may
EVERY_NAMESPACE = "*"
OUR_PODS = f"{LABEL_ROLE} in ({ROLE_ENGINE}, {ROLE_PREFETCH})"


class Controller:
    """One operator process. `run()` until cancelled, then `stop()`."""

    def __init__(self, api: ApiServer, options: OperatorOptions, identity: str, version: str) -> None:
        self._cluster = Cluster(api)
        self._options = options
        home = options.release_namespace or api.namespace
        self._lease = Lease(LeaseObject(api, home, LEASE), identity)
        self._links = RouterLinks(identity, self._router_spoke)
        self._outlines: dict[str, Outline] = {}
        self._keys: set[str] = set()
        self._queue = WorkQueue(self._work, concurrency=options.max_concurrent_reconciles)
        self._pods = [
            Mirror(api, path_of("Pod", namespace), self._pod_changed, selector=OUR_PODS)
            for namespace in watched_namespaces(options, api.namespace)
        ]
        self._routers = Mirror(
            api, path_of("Pod", home), self._routers_changed, selector=options.router_selector
        )
        settings = ReconcileSettings(options.engine_image, options.router_url, version)
        self._reconciler = Reconciler(self._cluster, self, settings)

    @property
    def expected(self) -> int:
        """Routers that must agree."""
        return expected_routers(self._routers.objects.values())

    def fresh(self) -> list[State]:
        """What the routers said lately."""
        return self._links.fresh()

    @property
    def mirrors(self) -> list[Mirror]:
        return [*self._pods, self._routers]

    @property
    def holds_lease(self) -> bool:
        return self._lease.held

    def look_at(self, key: str, *, exists: bool) -> None:
        """An LLMDeployment (namespace/name) is new, has changed or is gone."""
        if exists:
            self._keys.add(key)
            self._queue.add(key)
        else:
            self._keys.discard(key)
            self._queue.forget(key)

    async def run(self) -> None:
        """Watch, hold the lease, and look at everything now and then."""
        async with asyncio.TaskGroup() as tasks:
            for mirror in self.mirrors:
                tasks.create_task(mirror.run())
            tasks.create_task(self._lease.run(self._look_at_all))
            tasks.create_task(self._resync())

    async def stop(self) -> None:
        """End the work in hand, and let a successor begin at once."""
        await self._queue.close()
        await self._links.close()
        with contextlib.suppress(ApiError, TimeoutError):
            async with asyncio.timeout(RELEASE_S):
                await self._lease.release()

    async def _work(self, key: str) -> float | None:
        if not self._lease.held:
            return STANDBY_S
        if not all(mirror.synced.is_set() for mirror in self.mirrors):
            return STANDBY_S
        return await self._reconciler.reconcile(key)

    async def _resync(self) -> None:
        while True:
            # Not all operators of a cluster, nor all objects of one, at the same moment.
            await asyncio.sleep(self._options.resync_s * random.uniform(0.8, 1.2))
            self._look_at_all()

    def _look_at_all(self) -> None:
        for key in self._keys:
            self._queue.add(key)

    def _pod_changed(self, key: str, pod: Object | None) -> None:
        deployment = deployment_key(pod) if pod is not None else self._deployment_of().get(key)
        if deployment is not None and deployment in self._keys:
            self._queue.add(deployment)
        elif pod is None:
            self._look_at_all()

    def _routers_changed(self, key: str, pod: Object | None) -> None:
        self._links.set_routers(serving_routers(self._routers.objects.values()))
        self._look_at_all()

    def _router_spoke(self, _: State) -> None:
        new = outlines(self.fresh(), self._deployment_of())
        for key in changed_keys(self._outlines, new):
            if key in self._keys:
                self._queue.add(key)
        self._outlines = new

    def _deployment_of(self) -> dict[str, str]:
        return {
            key: deployment
            for mirror in self._pods
            for key, pod in mirror.objects.items()
            if (deployment := deployment_key(pod))
        }


def watched_namespaces(options: OperatorOptions, own: str) -> tuple[str | None, ...]:
    """None is every namespace."""
    if EVERY_NAMESPACE in options.namespace:
        return (None,)
    return options.namespace or (own,)
