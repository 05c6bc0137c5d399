"""The objects beside the pods: Service, PodDisruptionBudget, a revision's ConfigMap, the cache's claim. Pure.

Each is whole and ready for server-side apply by FIELD_MANAGER_OPERATOR.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from shoal_api.names import (
    ANNOTATION_ACTIVATED,
    LABEL_DEPLOYMENT,
    LABEL_REVISION,
    LABEL_ROLE,
    PORT_ENGINE_GRPC,
    PORT_ENGINE_HTTP,
    PORT_NAME_GRPC,
    PORT_NAME_HTTP,
    ROLE_ENGINE,
    ROLE_WORKER,
)
from shoal_api.spec import LLMDeployment
from shoal_operator.containers import engine_config
from shoal_operator.ownership import (
    claim_name,
    common_labels,
    config_map_name,
    engine_selector,
    owned_metadata,
)

Fields = dict[str, Any]


def desired_objects(deployment: LLMDeployment) -> list[Fields]:
    """What belongs to `deployment` whatever its revision; `config_map` is each revision's own."""
    objects = [service(deployment), disruption_budget(deployment), claim(deployment)]
    return [entry for entry in objects if entry is not None]


def service(deployment: LLMDeployment) -> Fields:
    """Headless, for metrics and DNS: users' requests go through the router."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owned_metadata(deployment, deployment.name, common_labels(deployment)),
        "spec": {
            "clusterIP": "None",
            "selector": engine_selector(deployment),
            "ports": [
                _port(PORT_NAME_HTTP, PORT_ENGINE_HTTP),
                _port(PORT_NAME_GRPC, PORT_ENGINE_GRPC),
            ],
        },
    }


def disruption_budget(deployment: LLMDeployment) -> Fields | None:
    """None if it is disabled; one that exists has then to be deleted."""
    budget = deployment.spec.disruption_budget
    if budget.disabled:
        return None
    roles = {"key": LABEL_ROLE, "operator": "In", "values": [ROLE_ENGINE, ROLE_WORKER]}
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": owned_metadata(deployment, deployment.name, common_labels(deployment)),
        "spec": {
            "maxUnavailable": budget.max_unavailable,
            "selector": {
                "matchLabels": {LABEL_DEPLOYMENT: deployment.name},
                "matchExpressions": [roles],
            },
            # A pod that does not serve anyway must not hold up the drain of a node.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def config_map(deployment: LLMDeployment, revision: str, activated_at: str) -> Fields:
    """A revision: the options its pods mount, and the spec they can be rendered from again.

    `activated_at` is RFC 3339. The data never change, so apply it once and patch only the annotation later: another
    version of the operator may render other options.
    """
    labels = {**common_labels(deployment), LABEL_REVISION: revision}
    metadata = owned_metadata(deployment, config_map_name(deployment, revision), labels)
    metadata["annotations"] = {ANNOTATION_ACTIVATED: activated_at}
    spec = deployment.spec.model_dump(by_alias=True, exclude_defaults=True, mode="json")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": True,
        "data": {
            "options.yaml": yaml.safe_dump(engine_config(deployment), allow_unicode=True),
            "spec.json": json.dumps(spec, sort_keys=True),
        },
    }


def claim(deployment: LLMDeployment) -> Fields | None:
    """The claim that is made for cache.size; None for every other cache."""
    cache = deployment.spec.cache
    if cache.type != "PersistentVolumeClaim" or cache.size is None:
        return None
    spec: Fields = {
        "accessModes": list(cache.access_modes),
        "resources": {"requests": {"storage": cache.size}},
    }
    if cache.storage_class_name is not None:
        spec["storageClassName"] = cache.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": owned_metadata(deployment, claim_name(deployment), common_labels(deployment)),
        "spec": spec,
    }


def _port(name: str, number: int) -> Fields:
    return {"name": name, "port": number, "targetPort": name, "protocol": "TCP"}
