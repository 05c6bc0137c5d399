"""The block of the manifest that fits replica pods into a cluster: named fields, not an open PodSpec.

Affinity, security context, topology constraints and volumes are passed on as they are; Kubernetes checks them
when the operator tries the pod (a dry run), and what it refuses becomes SpecAccepted=False.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from shoal_api.names import GROUP
from shoal_api.schema import Rule, Strict
from shoal_api.workload import MapKey, ObjectName

Text = Annotated[str, Field(max_length=1024)]
Labels = Annotated[dict[MapKey, Annotated[str, Field(max_length=63)]], Field(max_length=64)]
Annotations = Annotated[dict[MapKey, Annotated[str, Field(max_length=4096)]], Field(max_length=64)]
AsIs = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
AsIsList = Annotated[tuple[AsIs, ...], Field(max_length=32, strict=False)]


class PodMetadata(Strict):
    """Labels and annotations that pods get beside the operator's own."""

    labels: Labels = Field(default={}, description="Further labels.")
    annotations: Annotations = Field(default={}, description="Further annotations.")

    rules: ClassVar = (
        Rule(
            f"!has(self.labels) || self.labels.all(key, !key.startsWith('{GROUP}/'))",
            f"labels of {GROUP}/ are the operator's own",
            "labels",
        ),
    )


class Toleration(Strict):
    """As in a pod."""

    key: MapKey | None = Field(default=None, description="Taint key; unset matches all.")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="How value is compared.")
    value: Text | None = Field(default=None, description="Taint value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Taint effect; unset matches all."
    )
    toleration_s: Annotated[int, Field(ge=0, le=2**31)] | None = Field(
        default=None, description="How long NoExecute is tolerated."
    )


class SecretName(Strict):
    """A Secret in the same namespace."""

    name: ObjectName = Field(description="Name of the Secret.")


class VolumeMount(Strict):
    """Where a volume of podTemplate.volumes appears in the engine container."""

    name: ObjectName = Field(description="Name of the volume.")
    mount_path: Annotated[str, Field(max_length=1024, pattern=r"^/[^:]*$")] = Field(
        description="Where it appears."
    )
    sub_path: Text | None = Field(default=None, description="Part of the volume.")
    read_only: bool = Field(default=False, description="Whether the container may only read it.")


class PodTemplate(Strict):
    """What pods get beside what the operator computes."""

    metadata: PodMetadata = Field(default=PodMetadata(), description="Labels and annotations.")
    node_selector: Labels = Field(default={}, description="Labels of nodes that may run the pods.")
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32, strict=False)] = Field(
        default=(), description="Taints the pods tolerate."
    )
    affinity: AsIs | None = Field(default=None, description="As in a pod.")
    topology_spread_constraints: AsIsList | None = Field(
        default=None, description="As in a pod; unset spreads replicas over nodes as far as possible."
    )
    priority_class_name: ObjectName | None = Field(default=None, description="As in a pod.")
    runtime_class_name: ObjectName | None = Field(default=None, description="As in a pod.")
    scheduler_name: ObjectName | None = Field(default=None, description="As in a pod.")
    service_account_name: ObjectName | None = Field(default=None, description="As in a pod.")
    image_pull_secrets: Annotated[tuple[SecretName, ...], Field(max_length=16, strict=False)] = Field(
        default=(), description="Secrets with which images are pulled."
    )
    security_context: AsIs | None = Field(default=None, description="Of the pod, as in a pod.")
    volumes: AsIsList = Field(default=(), description="Further volumes, as in a pod.")
    volume_mounts: Annotated[tuple[VolumeMount, ...], Field(max_length=32, strict=False)] = Field(
        default=(), description="Where the further volumes appear in the engine container."
    )
