"""What changed in the world that an LLMDeployment must be looked at again for. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from shoal_api.kube import Object
from shoal_api.names import LABEL_DEPLOYMENT, PORT_ROUTER_GRPC
from shoal_api.router_state_pb2 import State

Outline = frozenset[tuple[object, ...]]


def outlines(states: Iterable[State], deployment_of: Mapping[str, str]) -> dict[str, Outline]:
    """Of each deployment (namespace/name) what its plan and status depend on, without what moves with every request.

    `deployment_of`: pod key -> deployment key.
    """
    found: dict[str, set[tuple[object, ...]]] = defaultdict(set)
    for state in states:
        for each in state.endpoints:
            if key := deployment_of.get(f"{each.namespace}/{each.pod}"):
                found[key].add((state.router, each.uid, each.standing, each.in_flight == 0))
        for model in state.models:
            key = f"{model.namespace}/{model.deployment}"
            found[key].add((state.router, state.synced, state.draining, model.held > 0))
    return {key: frozenset(facts) for key, facts in found.items()}


def changed_keys(old: Mapping[str, Outline], new: Mapping[str, Outline]) -> list[str]:
    """Deployments whose outline differs, sorted."""
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def deployment_key(pod: Object) -> str | None:
    """`namespace/name` of the deployment that a pod says it belongs to."""
    metadata = pod["metadata"]
    name = (metadata.get("labels") or {}).get(LABEL_DEPLOYMENT)
    return f"{metadata['namespace']}/{name}" if name else None


def serving_routers(pods: Iterable[Object]) -> dict[str, str]:
    """Router pods that have an address -> where their gRPC server listens; ending ones too: they still have requests."""
    found = {}
    for pod in pods:
        ip = (pod.get("status") or {}).get("podIP")
        if ip:
            host = f"[{ip}]" if ":" in ip else ip
            found[pod["metadata"]["name"]] = f"{host}:{PORT_ROUTER_GRPC}"
    return found


def expected_routers(pods: Iterable[Object]) -> int:
    """How many routers must agree: those that get requests, because they are ready and not ending."""
    return sum(
        any(
            each["type"] == "Ready" and each["status"] == "True"
            for each in pod["status"].get("conditions", ())
        )
        for pod in pods
        if not pod["metadata"].get("deletionTimestamp")
    )
