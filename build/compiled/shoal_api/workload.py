"""Blocks of the manifest that say what a replica is: model, engine, parallelism, resources, cache, adapters.

How replicas come and go is lifecycle.py; how their pods fit into a cluster is pod_template.py.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from shoal_api.names import DEFAULT_ACCELERATOR
from shoal_api.options import EngineOptions
from shoal_api.quantity import Quantity
from shoal_api.schema import Rule, Strict

URI_PATTERN = r"^((hf|pvc|s3|oci)://[^/\\s]+(/[^\\s]*)?|file:///[^\\s]+)$"

Uri = Annotated[str, Field(min_length=1, max_length=1024)]
ObjectName = Annotated[str, Field(min_length=1, max_length=253)]
ServedName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$")]
MapKey = Annotated[str, Field(max_length=253)]
Quantities = Annotated[dict[MapKey, Quantity], Field(max_length=16)]


def keyed_by(*keys: str) -> dict[str, Any]:
    """For Field(json_schema_extra=...): list entries are told apart by `keys`, and merge one by one."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


class SecretKey(Strict):
    """One entry of a Secret in the same namespace."""

    name: ObjectName = Field(description="Name of the Secret.")
    key: MapKey = Field(default="token", description="Key inside the Secret.")


class Model(Strict):
    """Which model is served, and under which name."""

    uri: Uri = Field(
        description="hf://ORG/NAME, file:///PATH, pvc://CLAIM/PATH, s3://BUCKET/PATH or oci://REGISTRY/IMAGE."
    )
    revision: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        default=None, description="Branch, tag or commit of an hf:// model; unset takes main."
    )
    name: ServedName | None = Field(
        default=None, description="Name of the model in requests; unset takes metadata.name."
    )
    token_secret_ref: SecretKey | None = Field(
        default=None, description="Access token for an hf:// model that is not public."
    )

    rules: ClassVar = (
        Rule(
            f"self.uri.matches('{URI_PATTERN}')",
            "must be hf://ORG/NAME, file:///PATH, pvc://CLAIM/PATH, s3://BUCKET/PATH or oci://REGISTRY/IMAGE",
            "uri",
        ),
        Rule(
            "!self.uri.startsWith('hf://') || self.uri.matches('^hf://[^/]+/[^/]+')",
            "names an organisation and a model: hf://ORG/NAME",
            "uri",
        ),
        Rule(
            "!has(self.revision) || self.uri.startsWith('hf://')",
            "is for hf:// models; write the tag or digest into the uri instead",
            "revision",
        ),
        Rule(
            "!has(self.tokenSecretRef) || self.uri.startsWith('hf://')",
            "is for hf:// models; pods read other stores by their service account or imagePullSecrets",
            "tokenSecretRef",
        ),
    )


class SecretKeyRef(SecretKey):
    """One entry of a Secret, which may be missing."""

    optional: bool = Field(default=False, description="Start without it when it is missing.")


class EnvSource(Strict):
    """Where the value of an environment variable comes from."""

    secret_key_ref: SecretKeyRef = Field(description="An entry of a Secret.")


class EnvVar(Strict):
    """An environment variable of the engine container."""

    name: Annotated[str, Field(max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = Field(
        description="Name of the variable."
    )
    value: Annotated[str, Field(max_length=4096)] | None = Field(default=None, description="Its value.")
    value_from: EnvSource | None = Field(default=None, description="Where its value comes from, instead.")

    rules: ClassVar = (
        Rule("has(self.value) != has(self.valueFrom)", "give either value or valueFrom", "value"),
    )


class ObjectRef(Strict):
    """A Secret or ConfigMap in the same namespace."""

    name: ObjectName = Field(description="Name of the object.")
    optional: bool = Field(default=False, description="Start without it when it is missing.")


class EnvFrom(Strict):
    """A whole Secret or ConfigMap as environment variables."""

    prefix: Annotated[str, Field(max_length=64)] = Field(default="", description="Put before each name.")
    secret_ref: ObjectRef | None = Field(default=None, description="The Secret.")
    config_map_ref: ObjectRef | None = Field(default=None, description="The ConfigMap.")

    rules: ClassVar = (
        Rule(
            "has(self.secretRef) != has(self.configMapRef)",
            "give either secretRef or configMapRef",
            "secretRef",
        ),
    )


class Engine(EngineOptions):
    """How an engine computes, and the container it runs in."""

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        default=None,
        description="Container image; unset takes the one that belongs to the operator's version.",
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="When the node pulls the image."
    )
    extra_args: Annotated[
        tuple[Annotated[str, Field(max_length=1024)], ...], Field(max_length=32, strict=False)
    ] = Field(
        default=(), description="Further arguments of `shoal serve`, for images with options of their own."
    )
    env: Annotated[tuple[EnvVar, ...], Field(max_length=64, strict=False)] = Field(
        default=(), description="Environment variables.", json_schema_extra=keyed_by("name")
    )
    env_from: Annotated[tuple[EnvFrom, ...], Field(max_length=16, strict=False)] = Field(
        default=(), description="Secrets and ConfigMaps as environment variables."
    )


class Parallelism(Strict):
    """How many accelerators share one replica."""

    tensor: Literal[1, 2, 4, 8] = Field(default=1, description="Accelerators that share each layer.")
    pipeline: Annotated[int, Field(ge=1, le=16)] = Field(
        default=1, description="Groups of accelerators that hold consecutive layers."
    )


class Resources(Strict):
    """What one pod asks of its node. Accelerators come from parallelism and are not repeated in limits."""

    requests: Quantities = Field(
        default={}, description="What the scheduler sets aside, such as cpu and memory."
    )
    limits: Quantities = Field(default={}, description="What the pod may use at most.")
    accelerator_resource: MapKey = Field(
        default=DEFAULT_ACCELERATOR, description="Resource name of the accelerators."
    )
    accelerator_count: Annotated[int, Field(ge=0, le=16)] | None = Field(
        default=None,
        description="Accelerators of one pod; unset takes parallelism.tensor, 0 serves on the CPU.",
    )

    rules: ClassVar = tuple(
        Rule(
            f"!has(self.{block}) || !(self.acceleratorResource in self.{block})",
            "leave the accelerator out; parallelism.tensor or acceleratorCount says how many",
            block,
        )
        for block in ("requests", "limits")
    )


class Cache(Strict):
    """Where a pod keeps the model, mounted at /models."""

    type: Literal["EmptyDir", "PersistentVolumeClaim", "HostPath", "Image"] = Field(
        default="EmptyDir",
        description="EmptyDir lives as long as the pod, HostPath as the node; Image mounts an oci:// model.",
    )
    claim_name: ObjectName | None = Field(default=None, description="An existing claim.")
    size: (
        Annotated[str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$")] | None
    ) = Field(
        default=None, description="Size of the claim that is made, or limit of the EmptyDir, such as 100Gi."
    )
    storage_class_name: ObjectName | None = Field(
        default=None, description="Storage class of the claim that is made."
    )
    access_modes: Annotated[
        tuple[Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"], ...],
        Field(max_length=3, strict=False),
    ] = Field(default=("ReadWriteMany",), description="Access modes of the claim that is made.")
    path: Annotated[str, Field(max_length=1024, pattern=r"^/.*$")] | None = Field(
        default=None, description="Directory on the node, for type HostPath."
    )
    prefetch: bool = Field(
        default=False, description="Fetch a new model to the nodes before the first old replica is drained."
    )

    rules: ClassVar = (
        Rule(
            "self.type != 'PersistentVolumeClaim' || has(self.claimName) != has(self.size)",
            "type PersistentVolumeClaim needs claimName of a claim that exists, or size of one to make",
            "claimName",
        ),
        Rule(
            "self.type == 'PersistentVolumeClaim' || !has(self.claimName)",
            "is for type PersistentVolumeClaim",
            "claimName",
        ),
        Rule(
            "self.type == 'PersistentVolumeClaim' && has(self.size) || !has(self.storageClassName)",
            "is for a claim that is made: type PersistentVolumeClaim with size",
            "storageClassName",
        ),
        Rule(
            "self.type in ['PersistentVolumeClaim', 'EmptyDir'] || !has(self.size)",
            "is for types PersistentVolumeClaim and EmptyDir",
            "size",
        ),
        Rule("self.type == 'HostPath' || !has(self.path)", "is for type HostPath", "path"),
        Rule(
            "self.type != 'HostPath' || has(self.path)", "type HostPath needs the path of a directory", "path"
        ),
    )


class Adapter(Strict):
    """A LoRA adapter, served beside the model under its own name."""

    name: ServedName = Field(description="Name of the adapter in requests.")
    uri: Uri = Field(description="Where the adapter lies, like model.uri.")

    rules: ClassVar = (
        Rule(
            f"self.uri.matches('{URI_PATTERN}')",
            "must be hf://ORG/NAME, file:///PATH, pvc://CLAIM/PATH, s3://BUCKET/PATH or oci://REGISTRY/IMAGE",
            "uri",
        ),
    )
