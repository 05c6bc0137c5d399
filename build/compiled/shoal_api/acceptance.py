"""What a valid manifest can still not be run as: the operator answers SpecAccepted=False, and old pods go on serving.

Only what can be told from the manifest alone; what depends on the model's files or the cluster is the operator's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from shoal_api.fields import leaves
from shoal_api.flags import option_of
from shoal_api.names import (
    MODELS_DIR,
    VOLUME_MODELS,
    VOLUME_OPTIONS,
    VOLUME_SHARED_MEMORY,
    VOLUME_SOURCE,
    VOLUME_TMP,
)
from shoal_api.options import EngineOptions, ServeOptions
from shoal_api.problems import Problem
from shoal_api.quantity import amount
from shoal_api.schema import yaml_name
from shoal_api.spec import LLMDeployment
from shoal_api.status import Reason

OWN_VOLUMES = (VOLUME_MODELS, VOLUME_OPTIONS, VOLUME_SHARED_MEMORY, VOLUME_SOURCE, VOLUME_TMP)
# Options of an engine that no part of the spec sets; a key can come from a Secret there.
BY_ENVIRONMENT = {"otlp_endpoint": "OTEL_EXPORTER_OTLP_ENDPOINT", "api_key": "SHOAL_API_KEY"}


@dataclass(frozen=True, slots=True)
class Rejection:
    """`reason` is that of the condition SpecAccepted."""

    reason: Reason
    problem: Problem


def rejections(deployment: LLMDeployment) -> list[Rejection]:
    """Every reason not to run `deployment`, in the order of the manifest."""
    checks = (_model_is_mounted, _extra_args_are_extra, _requests_fit_limits, _volumes_are_whole)
    return [rejection for check in checks for rejection in check(deployment)]


def _model_is_mounted(deployment: LLMDeployment) -> Iterator[Rejection]:
    """A file:// model has to come from a volume: an EmptyDir is empty."""
    spec = deployment.spec
    mounts = [PurePosixPath(mount.mount_path) for mount in spec.pod_template.volume_mounts]
    if spec.cache.type != "EmptyDir":
        mounts.append(PurePosixPath(MODELS_DIR))
    sources: list[tuple[tuple[str | int, ...], str]] = [(("spec", "model", "uri"), spec.model.uri)]
    sources += [(("spec", "adapters", i, "uri"), adapter.uri) for i, adapter in enumerate(spec.adapters)]
    for place, uri in sources:
        path = PurePosixPath(unquote(urlsplit(uri).path))
        if uri.startswith("file://") and not any(path.is_relative_to(mount) for mount in mounts):
            fix = f"choose cache.type HostPath or PersistentVolumeClaim, which is {MODELS_DIR} in the pod"
            problem = Problem(
                place, f"no volume of the pod holds {path}", f"{fix}, or add a volume that does"
            )
            yield Rejection("ModelNotMounted", problem)


def _extra_args_are_extra(deployment: LLMDeployment) -> Iterator[Rejection]:
    """What has a field is said in the field, where rules, status and rollouts see it."""
    own = {option_of(leaf): leaf for leaf in leaves(ServeOptions)}
    for index, argument in enumerate(deployment.spec.engine.extra_args):
        option = argument.partition("=")[0].replace("--no-", "--", 1)
        if (leaf := own.get(option)) or option == "--config":
            name = leaf.path[0] if leaf else ""
            if name in EngineOptions.model_fields:
                fix = f"write spec.engine.{yaml_name(name)}"
            elif variable := BY_ENVIRONMENT.get(name):
                fix = f"set {variable} in spec.engine.env"
            else:
                fix = "the operator sets it from other parts of the spec"
            place = ("spec", "engine", "extraArgs", index)
            yield Rejection("InvalidExtraArgs", Problem(place, f"{option} is no extra argument", fix))


def _requests_fit_limits(deployment: LLMDeployment) -> Iterator[Rejection]:
    resources = deployment.spec.resources
    for name, request in resources.requests.items():
        limit = resources.limits.get(name)
        if limit is not None and amount(request) > amount(limit):
            problem = Problem(
                ("spec", "resources", "requests", name), f"{request} is above the limit of {limit}"
            )
            yield Rejection("InvalidResources", problem)


def _volumes_are_whole(deployment: LLMDeployment) -> Iterator[Rejection]:
    """Mounts have their volume, and neither takes what the operator's own pods need."""
    template = deployment.spec.pod_template
    names = [_name(volume) for volume in template.volumes]
    for index, name in enumerate(names):
        place = ("spec", "podTemplate", "volumes", index, "name")
        if not name:
            yield Rejection("InvalidPodTemplate", Problem(place, "is required"))
        elif name in OWN_VOLUMES:
            yield Rejection(
                "InvalidPodTemplate", Problem(place, f"{name} is the operator's own", "rename it")
            )
        elif name in names[:index]:
            yield Rejection("InvalidPodTemplate", Problem(place, f"{name} stands twice", "rename one"))
    for index, mount in enumerate(template.volume_mounts):
        place = ("spec", "podTemplate", "volumeMounts", index, "name")
        if mount.name not in names:
            problem = Problem(place, f"there is no volume {mount.name}", "add it to podTemplate.volumes")
            yield Rejection("InvalidPodTemplate", problem)


def _name(volume: Mapping[str, object]) -> str:
    name = volume.get("name")
    return name if isinstance(name, str) else ""
