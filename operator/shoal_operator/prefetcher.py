"""Carries out what prefetch.py decides: pods that fetch a model ahead of a rollout come and go here."""

from __future__ import annotations

import logging
from dataclasses import replace

from shoal_api.kube import ApiError
from shoal_operator.cluster import Cluster
from shoal_operator.prefetch import prefetch
from shoal_operator.world import World

log = logging.getLogger(__name__)


class Prefetcher:
    """`engine_image` is used where spec.engine.image is unset."""

    def __init__(self, cluster: Cluster, engine_image: str, operator_version: str) -> None:
        self._cluster = cluster
        self._engine_image = engine_image
        self._operator_version = operator_version

    async def step(self, world: World, wanted: str) -> tuple[World, ApiError | None]:
        """The world with whether the rollout to revision `wanted` has to wait; why a pod was not made, if so.

        What somebody else was faster with is no error: the next look sees it.
        """
        todo = prefetch(world, wanted, self._engine_image, self._operator_version)
        world = replace(world, prefetching=todo.waiting)
        namespace = world.deployment.namespace
        try:
            for pod in todo.delete:
                await self._cluster.delete("Pod", namespace, pod.name, pod.uid)
            for body in todo.create:
                await self._cluster.create(body)
        except ApiError as error:
            if not (error.conflict or error.not_found):
                return world, error
            log.info("%s/%s: fetching ahead: %s", namespace, world.deployment.name, error)
        return world, None
