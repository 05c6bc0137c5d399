"""The containers of an engine pod: the engine, and the loaders that bring its files. Pure."""

from __future__ import annotations

from typing import Any

from shoal_api.flags import to_config
from shoal_api.model_cache import model_path
from shoal_api.names import (
    CONTAINER_ENGINE,
    CONTAINER_LOADER,
    MODELS_DIR,
    OPTIONS_FILE,
    PORT_ENGINE_GRPC,
    PORT_ENGINE_HTTP,
    PORT_NAME_GRPC,
    PORT_NAME_HTTP,
)
from shoal_api.serving import serve_options
from shoal_api.spec import LLMDeployment
from shoal_operator.pod_volumes import engine_mounts, fetched_sources, loader_mounts

# A large model over a slow disk takes long, and an engine that makes no progress ends by itself: this only bounds it.
STARTUP_PERIOD_S = 2
STARTUP_LIMIT_S = 2 * 3600

# User and seccomp profile are the pod's, where the user's podTemplate.securityContext can change them.
SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}

Fields = dict[str, Any]


def engine_config(deployment: LLMDeployment) -> Fields:
    """What `shoal serve --config` reads in the pod, camelCase."""
    spec = deployment.spec
    options = serve_options(
        deployment,
        model_path(spec.model.uri, spec.model.revision),
        {adapter.name: model_path(adapter.uri) for adapter in spec.adapters},
        port=PORT_ENGINE_HTTP,
        grpc_port=PORT_ENGINE_GRPC,
    )
    return to_config(options)


def engine_container(deployment: LLMDeployment, engine_image: str) -> Fields:
    """The engine, without probes: serving_fields() adds what only a container that answers requests has."""
    engine = deployment.spec.engine
    return {
        "name": CONTAINER_ENGINE,
        **_image(deployment, engine_image),
        "command": ["shoal", "serve", "--config", OPTIONS_FILE],
        "args": list(engine.extra_args),
        "env": _environment(deployment),
        "envFrom": _environment_sources(deployment),
        "resources": _resources(deployment, with_accelerators=True),
        "securityContext": SECURITY,
        "volumeMounts": engine_mounts(deployment),
        # The last lines of a crash become lastFailure.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def serving_fields(deployment: LLMDeployment) -> Fields:
    """Ports, probes and the wait before SIGTERM of an engine that answers requests."""
    ready = {"httpGet": {"path": "/ready", "port": PORT_NAME_HTTP}, "timeoutSeconds": 5}
    fields: Fields = {
        "ports": [
            {"name": PORT_NAME_HTTP, "containerPort": PORT_ENGINE_HTTP, "protocol": "TCP"},
            {"name": PORT_NAME_GRPC, "containerPort": PORT_ENGINE_GRPC, "protocol": "TCP"},
        ],
        "startupProbe": {
            **ready,
            "periodSeconds": STARTUP_PERIOD_S,
            "failureThreshold": STARTUP_LIMIT_S // STARTUP_PERIOD_S,
        },
        "readinessProbe": {**ready, "periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": {
            "httpGet": {"path": "/health", "port": PORT_NAME_HTTP},
            "timeoutSeconds": 5,
            "periodSeconds": 10,
            "failureThreshold": 3,
        },
    }
    if delay_s := deployment.spec.drain.pre_stop_delay_s:
        fields["lifecycle"] = {"preStop": {"sleep": {"seconds": delay_s}}}
    return fields


def loaders(deployment: LLMDeployment, engine_image: str) -> list[Fields]:
    """One init container per source to fetch, one after another: model-loader, model-loader-1, ..."""
    return [
        _loader(deployment, engine_image, uri, revision, f"{CONTAINER_LOADER}-{index}".removesuffix("-0"))
        for index, (uri, revision) in enumerate(fetched_sources(deployment))
    ]


def _loader(
    deployment: LLMDeployment, engine_image: str, uri: str, revision: str | None, name: str
) -> Fields:
    command = ["shoal", "fetch", uri, *(["--revision", revision] if revision else [])]
    command += ["--cache-dir", MODELS_DIR, "--progress-port", str(PORT_ENGINE_HTTP)]
    token = deployment.spec.model.token_secret_ref
    secret = {"HF_TOKEN": {"valueFrom": {"secretKeyRef": token.model_dump(mode="json")}}} if token else {}
    return {
        "name": name,
        **_image(deployment, engine_image),
        "command": command,
        "env": _environment(deployment, secret),
        "envFrom": _environment_sources(deployment),
        # The same as the engine's: an init container that asks for no more leaves the pod as large as it is.
        "resources": _resources(deployment, with_accelerators=False),
        "ports": [{"name": "progress", "containerPort": PORT_ENGINE_HTTP, "protocol": "TCP"}],
        "securityContext": SECURITY,
        "volumeMounts": loader_mounts(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _image(deployment: LLMDeployment, engine_image: str) -> Fields:
    engine = deployment.spec.engine
    return {"image": engine.image or engine_image, "imagePullPolicy": engine.image_pull_policy}


def _environment(deployment: LLMDeployment, further: dict[str, Fields] | None = None) -> list[Fields]:
    """Each name once; the user's value wins."""
    # The home of an unknown uid is /, which is read-only here; compiled kernels go below the cache home.
    own: dict[str, Fields] = {
        "HOME": {"value": "/tmp"},
        "XDG_CACHE_HOME": {"value": "/tmp/.cache"},
        **(further or {}),
    }
    for variable in deployment.spec.engine.env:
        fields = variable.model_dump(by_alias=True, exclude_none=True, mode="json")
        own[fields.pop("name")] = fields
    return [{"name": name, **fields} for name, fields in own.items()]


def _environment_sources(deployment: LLMDeployment) -> list[Fields]:
    return [
        source.model_dump(by_alias=True, exclude_none=True, mode="json")
        for source in deployment.spec.engine.env_from
    ]


def _resources(deployment: LLMDeployment, *, with_accelerators: bool) -> Fields:
    resources = deployment.spec.resources
    limits = {name: str(quantity) for name, quantity in resources.limits.items()}
    if with_accelerators and deployment.accelerators_per_pod:
        limits[resources.accelerator_resource] = str(deployment.accelerators_per_pod)
    requests = {name: str(quantity) for name, quantity in resources.requests.items()}
    return {"requests": requests, "limits": limits}
