"""The volumes of an engine pod and where its containers see them. Pure; contains no data, only where it comes from."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from shoal_api.model_cache import cache_path, is_fetched
from shoal_api.names import (
    MODELS_DIR,
    OPTIONS_FILE,
    SOURCE_DIR,
    VOLUME_MODELS,
    VOLUME_OPTIONS,
    VOLUME_SHARED_MEMORY,
    VOLUME_SOURCE,
    VOLUME_TMP,
)
from shoal_api.spec import LLMDeployment
from shoal_operator.ownership import claim_name, config_map_name

TMP_SIZE = "2Gi"  # compiled kernels and caches of libraries; the root file system is read-only

Fields = dict[str, Any]


def volumes(deployment: LLMDeployment, revision: str) -> list[Fields]:
    """All volumes of the pod, the user's last."""
    spec = deployment.spec
    shared_gib = max(1, deployment.accelerators_per_pod)
    own: list[Fields] = [
        {"name": VOLUME_MODELS, **_cache(deployment)},
        {"name": VOLUME_OPTIONS, "configMap": {"name": config_map_name(deployment, revision)}},
        {"name": VOLUME_SHARED_MEMORY, "emptyDir": {"medium": "Memory", "sizeLimit": f"{shared_gib}Gi"}},
        {"name": VOLUME_TMP, "emptyDir": {"sizeLimit": TMP_SIZE}},
    ]
    if spec.cache.type == "Image":
        reference = spec.model.uri.removeprefix("oci://")
        image = {"reference": reference, "pullPolicy": spec.engine.image_pull_policy}
        own.append({"name": VOLUME_SOURCE, "image": image})
    own += [
        {"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        for claim, name in _source_claims(deployment).items()
    ]
    return own + [dict(volume) for volume in spec.pod_template.volumes]


def engine_mounts(deployment: LLMDeployment) -> list[Fields]:
    """Where `shoal serve` sees them: models read-only, scratch writable."""
    spec = deployment.spec
    by_image = spec.cache.type == "Image"
    mounts: list[Fields] = [
        # The mount point of the image is made inside it, which needs it writable.
        {"name": VOLUME_MODELS, "mountPath": MODELS_DIR, "readOnly": not by_image},
        {"name": VOLUME_OPTIONS, "mountPath": str(PurePosixPath(OPTIONS_FILE).parent), "readOnly": True},
        {"name": VOLUME_SHARED_MEMORY, "mountPath": "/dev/shm"},
        {"name": VOLUME_TMP, "mountPath": "/tmp"},
    ]
    if by_image:
        path = f"{MODELS_DIR}/{cache_path(spec.model.uri, spec.model.revision)}"
        mounts.append({"name": VOLUME_SOURCE, "mountPath": path, "readOnly": True})
    mounts += [
        {"name": name, "mountPath": f"{SOURCE_DIR}/{claim}", "readOnly": True}
        for claim, name in _source_claims(deployment).items()
    ]
    own = spec.pod_template.volume_mounts
    return mounts + [mount.model_dump(by_alias=True, exclude_none=True, mode="json") for mount in own]


def loader_mounts() -> list[Fields]:
    """Where the model-loader sees them."""
    return [
        {"name": VOLUME_MODELS, "mountPath": MODELS_DIR},
        {"name": VOLUME_TMP, "mountPath": "/tmp"},
    ]


def fetched_sources(deployment: LLMDeployment) -> list[tuple[str, str | None]]:
    """(uri, revision) of what a model-loader has to bring, the model first, each once."""
    spec = deployment.spec
    sources: list[tuple[str, str | None]] = []
    if spec.cache.type != "Image":
        sources.append((spec.model.uri, spec.model.revision))
    sources += [(adapter.uri, None) for adapter in spec.adapters]
    return [source for source in dict.fromkeys(sources) if is_fetched(source[0])]


def _source_claims(deployment: LLMDeployment) -> dict[str, str]:
    """Claims of pvc:// models and adapters -> name of the volume, in the order of the manifest."""
    spec = deployment.spec
    uris = [urlsplit(uri) for uri in (spec.model.uri, *(adapter.uri for adapter in spec.adapters))]
    claims = dict.fromkeys(uri.netloc for uri in uris if uri.scheme == "pvc")
    return {claim: f"{VOLUME_SOURCE}-{index}" for index, claim in enumerate(claims)}


def _cache(deployment: LLMDeployment) -> Fields:
    cache = deployment.spec.cache
    if cache.type == "PersistentVolumeClaim":
        return {"persistentVolumeClaim": {"claimName": claim_name(deployment)}}
    if cache.type == "HostPath":
        # Made when something is fetched into it; a model that should be there already must not be hidden by a new one.
        kind = "DirectoryOrCreate" if fetched_sources(deployment) else "Directory"
        return {"hostPath": {"path": cache.path, "type": kind}}
    return {"emptyDir": {"sizeLimit": cache.size} if cache.size else {}}
