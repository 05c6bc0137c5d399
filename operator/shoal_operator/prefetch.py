"""Pods that bring a new revision's model to where its replicas will run, before an old replica is drained. Pure.

For spec.cache.prefetch, where a cache outlives its pods: one pod per node of a HostPath, one for a claim. They are the
engine's own pod without the engine, so that what they fetch is what it looks for. Of a replica over several nodes only
the leader's node is known here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from shoal_api.names import LABEL_REVISION, LABEL_ROLE, ROLE_PREFETCH
from shoal_api.spec import LLMDeployment
from shoal_operator.ownership import common_labels, owned_metadata
from shoal_operator.pod import pod_annotations, pod_spec
from shoal_operator.pod_volumes import fetched_sources
from shoal_operator.standing import Standing
from shoal_operator.world import Replica, World

Fields = dict[str, Any]

LASTING_CACHES = ("HostPath", "PersistentVolumeClaim")
# Beside an engine that has all of a node's memory there is still room for a download.
REQUESTS = {"cpu": "10m", "memory": "128Mi"}


@dataclass(frozen=True, slots=True)
class Prefetch:
    """The next step: Pods to create, pods to delete, and whether the rollout has to wait."""

    create: tuple[Fields, ...] = ()
    delete: tuple[Replica, ...] = ()
    waiting: bool = False


def prefetch(world: World, revision: str, engine_image: str, operator_version: str) -> Prefetch:
    """Towards the model of `revision`, the wanted one. A pod that no node has room for is not waited for."""
    standing = Standing(world, revision)
    wanted = {}
    if world.rejected is None:
        wanted = prefetch_pods(world, revision, engine_image, operator_version)
    there = {each.name: each for each in world.prefetch_pods}
    over = [
        each
        for each in there.values()
        if each.name not in wanted or (each.phase == "Failed" and standing.failed(each))
    ]
    settled = {each.name for each in there.values() if each.phase == "Succeeded" or standing.stuck(each)}
    return Prefetch(
        tuple(pod for name, pod in wanted.items() if name not in there),
        tuple(each for each in over if each.terminating_since_s is None),
        bool(wanted.keys() - settled),
    )


def prefetch_pods(world: World, revision: str, engine_image: str, operator_version: str) -> dict[str, Fields]:
    """Name -> Pod, one for each place that has to have the model."""
    pods = [
        _pod(world.deployment, revision, nodes, engine_image, operator_version)
        for nodes in _places(world, revision)
    ]
    return {pod["metadata"]["name"]: pod for pod in pods}


def _places(world: World, revision: str) -> list[list[str]]:
    """For each pod the nodes that will do, any if there are none; no pod if nothing is to be fetched ahead.

    Where a replica of the new revision is, the model has been fetched ahead, or its own loader is at it.
    """
    cache = world.deployment.spec.cache
    if not cache.prefetch or cache.type not in LASTING_CACHES or not fetched_sources(world.deployment):
        return []
    staying = [each for each in world.replicas if each.terminating_since_s is None]
    if not staying or any(each.revision == revision for each in staying):
        return []
    nodes = sorted({each.node for each in staying if each.node is not None})
    # A claim may be usable only where it is used already.
    return [[node] for node in nodes] if cache.type == "HostPath" else [nodes]


def _pod(
    deployment: LLMDeployment, revision: str, nodes: list[str], engine_image: str, operator_version: str
) -> Fields:
    is_one_of_many = deployment.spec.cache.type == "HostPath"
    place = hashlib.sha256(("".join(nodes) if is_one_of_many else "").encode()).hexdigest()[:8]
    labels = {
        **deployment.spec.pod_template.metadata.labels,
        **common_labels(deployment),
        LABEL_REVISION: revision,
        LABEL_ROLE: ROLE_PREFETCH,
    }
    metadata = owned_metadata(deployment, f"{deployment.name}-{revision}-fetch-{place}", labels)
    metadata["annotations"] = pod_annotations(deployment, operator_version)
    spec = pod_spec(deployment, revision, engine_image, serving=False)
    loaders = [each | {"resources": _resources(deployment)} for each in spec["initContainers"]]
    mounted = {mount["name"] for each in loaders for mount in each["volumeMounts"]}
    spec |= {
        "restartPolicy": "OnFailure",
        "terminationGracePeriodSeconds": 5,
        "initContainers": loaders[:-1],
        "containers": loaders[-1:],
        "volumes": [each for each in spec["volumes"] if each["name"] in mounted],
        "topologySpreadConstraints": [],
    }
    if nodes:
        spec["affinity"] = _only_on(nodes)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _resources(deployment: LLMDeployment) -> Fields:
    """No accelerators, and of processor and memory no more than a download takes, up to the engine's limits."""
    limits = deployment.spec.resources.limits
    return {
        "requests": REQUESTS,
        "limits": {name: str(amount) for name, amount in limits.items() if name in REQUESTS},
    }


def _only_on(nodes: Iterable[str]) -> Fields:
    """By the nodes' own names, as a DaemonSet does: a hostname label may be another. One of several terms is enough."""
    terms = [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]} for node in nodes
    ]
    required = {"nodeSelectorTerms": terms}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
