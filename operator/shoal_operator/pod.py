"""The pod of one replica, rendered from a manifest: restricted pod security, no token, drained before it ends. Pure.

Its containers are containers.py, its volumes pod_volumes.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal_api.names import (
    ANNOTATION_OPERATOR,
    LABEL_DEPLOYMENT,
    LABEL_REVISION,
    LABEL_ROLE,
    ROLE_ENGINE,
    pod_name,
)
from shoal_api.pod_template import PodTemplate
from shoal_api.spec import LLMDeployment
from shoal_operator.containers import engine_container, loaders, serving_fields
from shoal_operator.ownership import owned_metadata, replica_labels
from shoal_operator.pod_volumes import volumes

USER_ID = 65532  # "nonroot" of the images
GRACE_MARGIN_S = 15  # beyond drain timeout and preStop delay, before SIGKILL

Fields = dict[str, Any]


def render(
    deployment: LLMDeployment, revision: str, slot: int, engine_image: str, operator_version: str
) -> Fields:
    """The Pod of replica `slot`, to be created; `engine_image` is used where spec.engine.image is unset.

    For an old revision, `deployment` has the spec of that revision.
    """
    metadata = owned_metadata(
        deployment, pod_name(deployment.name, revision, slot), replica_labels(deployment, revision, slot)
    )
    metadata["annotations"] = pod_annotations(deployment, operator_version)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": pod_spec(deployment, revision, engine_image),
    }


def pod_annotations(deployment: LLMDeployment, operator_version: str) -> dict[str, str]:
    """The user's, and which operator rendered the pod."""
    return {
        **deployment.spec.pod_template.metadata.annotations,
        ANNOTATION_OPERATOR: operator_version,
    }


def pod_spec(deployment: LLMDeployment, revision: str, engine_image: str, *, serving: bool = True) -> Fields:
    """`serving` False is a member of a group that answers no requests itself: no ports, no probes."""
    drain = deployment.spec.drain
    engine = engine_container(deployment, engine_image)
    if serving:
        engine |= serving_fields(deployment)
    return {
        **_placement(deployment.spec.pod_template, deployment.name, revision),
        "restartPolicy": "Always",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": drain.timeout_s + drain.pre_stop_delay_s + GRACE_MARGIN_S,
        "securityContext": _security(deployment.spec.pod_template.security_context or {}),
        "initContainers": loaders(deployment, engine_image),
        "containers": [engine],
        "volumes": volumes(deployment, revision),
    }


def _security(overlay: Mapping[str, Any]) -> Fields:
    """The restricted profile, the user's fields over it."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
        **overlay,
    }


def _placement(template: PodTemplate, deployment: str, revision: str) -> Fields:
    """Where the pod may run; fields that nobody set are left to Kubernetes."""
    spread = template.topology_spread_constraints
    fields: Fields = {
        "nodeSelector": template.node_selector,
        "tolerations": _plain(template.tolerations),
        "affinity": template.affinity,
        "topologySpreadConstraints": [_over_nodes(deployment, revision)] if spread is None else list(spread),
        "priorityClassName": template.priority_class_name,
        "runtimeClassName": template.runtime_class_name,
        "schedulerName": template.scheduler_name,
        "serviceAccountName": template.service_account_name,
        "imagePullSecrets": _plain(template.image_pull_secrets),
    }
    return {name: value for name, value in fields.items() if value}


def _over_nodes(deployment: str, revision: str) -> Fields:
    """A preference only: one node with room is better than a replica that waits for a second node."""
    labels = {LABEL_DEPLOYMENT: deployment, LABEL_REVISION: revision, LABEL_ROLE: ROLE_ENGINE}
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": labels},
    }


def _plain(items: Any) -> list[Fields]:
    return [item.model_dump(by_alias=True, exclude_none=True, mode="json") for item in items]
