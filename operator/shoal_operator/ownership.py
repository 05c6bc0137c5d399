"""Names, labels and owner of what the operator makes. Pure; what stands under them is pod.py and desired.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal_api.names import (
    API_VERSION,
    KIND,
    LABEL_DEPLOYMENT,
    LABEL_INSTANCE,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    LABEL_REVISION,
    LABEL_ROLE,
    LABEL_SLOT,
    MANAGER,
    ROLE_ENGINE,
)
from shoal_api.spec import LLMDeployment


def owned_metadata(deployment: LLMDeployment, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """Metadata of an object that goes when `deployment` goes."""
    return {
        "name": name,
        "namespace": deployment.namespace,
        "labels": dict(labels),
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": deployment.name,
                "uid": deployment.metadata.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def common_labels(deployment: LLMDeployment) -> dict[str, str]:
    """On every object of `deployment`."""
    return {
        LABEL_NAME: MANAGER,
        LABEL_INSTANCE: deployment.name,
        LABEL_MANAGED_BY: MANAGER,
        LABEL_DEPLOYMENT: deployment.name,
    }


def replica_labels(
    deployment: LLMDeployment, revision: str, slot: int, role: str = ROLE_ENGINE
) -> dict[str, str]:
    """On the pods of one replica. The user's own labels come below the operator's."""
    return {
        **deployment.spec.pod_template.metadata.labels,
        **common_labels(deployment),
        LABEL_REVISION: revision,
        LABEL_SLOT: str(slot),
        LABEL_ROLE: role,
    }


def engine_selector(deployment: LLMDeployment) -> dict[str, str]:
    """Labels that the pods which serve `deployment` have, and no other pod."""
    return {LABEL_DEPLOYMENT: deployment.name, LABEL_ROLE: ROLE_ENGINE}


def config_map_name(deployment: LLMDeployment, revision: str) -> str:
    return f"{deployment.name}-{revision}"


def claim_name(deployment: LLMDeployment) -> str:
    """The claim that is the cache: the user's, or the one made for cache.size."""
    return deployment.spec.cache.claim_name or f"{deployment.name}-models"
