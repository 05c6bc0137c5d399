"""Replicas of a cluster: engine pods and LLMDeployments, mirrored from the API server. Writes nothing.

When the API server is away, what was last seen stays. A pod that is being deleted or has no address leaves at
once; one with the drain annotation stays, cordoned.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from shoal_api import names
from shoal_api.kube import ApiServer, Object
from shoal_api.mirror import Mirror
from shoal_api.spec import InvalidManifest, LLMDeployment
from shoal_router.discovery import Address, Changed, Deployment
from shoal_router.routing import Routing

log = logging.getLogger(__name__)

AFTER_BUG_S: Final = 5.0
EVERY_NAMESPACE: Final = "*"


def address_of(pod: Object) -> Address | None:
    """Where the engine in `pod` listens; None when it cannot or must not be reached."""
    metadata, status = pod["metadata"], pod.get("status", {})
    ip, labels = status.get("podIP"), metadata.get("labels", {})
    ended = status.get("phase") in ("Succeeded", "Failed")
    if not ip or ended or metadata.get("deletionTimestamp"):
        return None
    return Address(
        metadata["name"],
        ip,
        _http_port(pod),
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        deployment=labels.get(names.LABEL_DEPLOYMENT, ""),
        cordoned=names.ANNOTATION_DRAIN in metadata.get("annotations", {}),
    )


def _http_port(pod: Object) -> int:
    for container in pod.get("spec", {}).get("containers", ()):
        for port in container.get("ports", ()) if container["name"] == names.CONTAINER_ENGINE else ():
            if port.get("name") == names.PORT_NAME_HTTP:
                return int(port["containerPort"])
    return names.PORT_ENGINE_HTTP


def deployment_of(found: Object) -> Deployment:
    """What an LLMDeployment serves. Raises InvalidManifest."""
    parsed = LLMDeployment.parse(found)
    spec = parsed.spec
    scaling, cold = spec.autoscaling, spec.routing.cold_start
    # Only a deployment that grows because somebody waits lets them wait, also while its first replica loads.
    sleeps = scaling is not None and scaling.enabled and scaling.min_replicas == 0
    holds = sleeps and not spec.suspend
    return Deployment(
        parsed.namespace,
        parsed.name,
        (parsed.served_model, *(adapter.name for adapter in spec.adapters)),
        hold_s=cold.hold_s if holds else 0.0,
        max_held=cold.max_queued if holds else 0,
        max_num_seqs=spec.engine.max_num_seqs or 0,
        routing=Routing.from_options(spec.routing),
        created=found["metadata"].get("creationTimestamp", ""),
    )


def claimed(deployments: Iterable[Deployment]) -> tuple[Deployment, ...]:
    """Oldest first, each without the names that an older one has: a name is served by one deployment."""
    taken: set[str] = set()
    left = []
    for each in sorted(deployments, key=lambda each: (each.created, each.namespace, each.name)):
        own = tuple(model for model in each.models if model not in taken)
        taken.update(own)
        left.append(replace(each, models=own))
    return tuple(left)


class KubernetesDiscovery:
    """`namespaces`: '*' is all, none the pod's own; `selector` narrows the LLMDeployments and so their pods."""

    def __init__(self, api: ApiServer, namespaces: tuple[str, ...] = (), selector: str = "") -> None:
        self._api = api
        self._only_selected = bool(selector)
        self._changed: Changed | None = None
        self._publishing: asyncio.Handle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._deployments: dict[str, Deployment] = {}
        self._claimed: tuple[Deployment, ...] = ()
        self._pods: list[Mirror] = []
        self._mirrors: list[Mirror] = []
        self._namespaces = tuple(dict.fromkeys(namespaces or (api.namespace,)))
        if EVERY_NAMESPACE in self._namespaces:
            self._namespaces = (EVERY_NAMESPACE,)
        self._selector = selector

    @property
    def deployments(self) -> tuple[Deployment, ...]:
        return self._claimed

    @property
    def synced(self) -> bool:
        return bool(self._mirrors) and all(mirror.synced.is_set() for mirror in self._mirrors)

    async def start(self, changed: Changed) -> None:
        """Begin to watch; an API server that cannot be reached is tried again until it can."""
        self._changed = changed
        engines = f"{names.LABEL_ROLE}={names.ROLE_ENGINE}"
        for namespace in self._namespaces:
            within = "" if namespace == EVERY_NAMESPACE else f"/namespaces/{namespace}"
            pods = Mirror(self._api, f"/api/v1{within}/pods", self._pod_changed, selector=engines)
            path = f"/apis/{names.API_VERSION}{within}/{names.PLURAL}"
            deployments = Mirror(self._api, path, self._deployment_changed, selector=self._selector)
            self._pods.append(pods)
            self._mirrors += (pods, deployments)
        self._tasks = [asyncio.create_task(_follow(mirror)) for mirror in self._mirrors]

    async def stop(self) -> None:
        """End the watches and close the way to the API server."""
        self._changed = None
        if self._publishing is not None:
            self._publishing.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self._api.__aexit__()

    def _pod_changed(self, key: str, pod: Object | None) -> None:
        self._publish_soon()

    def _deployment_changed(self, key: str, found: Object | None) -> None:
        before = self._deployments.get(key)
        if found is None:
            self._deployments.pop(key, None)
        else:
            try:
                self._deployments[key] = deployment_of(found)
            except InvalidManifest as error:  # its pods run on; what was known before stays
                log.warning("LLMDeployment %s cannot be read: %s", key, error)
        if self._deployments.get(key) == before:
            return  # its status changes much more often than what it serves
        self._claimed = claimed(self._deployments.values())
        for each in self._claimed:
            if (each.namespace, each.name) == tuple(key.split("/")):
                lost = set(self._deployments[key].models) - set(each.models)
                if lost:
                    log.warning("%s: an older LLMDeployment is served as %s", key, ", ".join(sorted(lost)))
        self._publish_soon()

    def _publish_soon(self) -> None:
        """A list brings many changes in one turn of the loop; they are told as one."""
        if self._publishing is None:
            self._publishing = asyncio.get_running_loop().call_soon(self._publish)

    def _publish(self) -> None:
        self._publishing = None
        if self._changed is not None:
            self._changed(self._addresses())

    def _addresses(self) -> list[Address]:
        pods = (address_of(pod) for mirror in self._pods for pod in mirror.objects.values())
        found = [address for address in pods if address is not None]
        if not self._only_selected:
            return found
        return [each for each in found if f"{each.namespace}/{each.deployment}" in self._deployments]


async def _follow(mirror: Mirror) -> None:
    while True:
        try:
            await mirror.run()
        except Exception:
            log.exception("bug while watching")
            await asyncio.sleep(AFTER_BUG_S)
