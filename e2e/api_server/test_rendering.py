"""What the operator renders, before a real API server: every field is known to it, and pod security lets it in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from shoal_api.kube import ApiError, ApiServer
from shoal_api.spec import LLMDeployment
from shoal_operator.cluster import path_of
from shoal_operator.desired import config_map, desired_objects
from shoal_operator.leader_worker_set import render_group
from shoal_operator.pod import render

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "examples").glob("*.yaml"))
}
SPECS: dict[str, dict[str, Any]] = {
    **{name: manifest["spec"] for name, manifest in EXAMPLES.items()},
    "image": {"model": {"uri": "oci://registry/model:1"}, "cache": {"type": "Image"}},
    "no delay": {"model": {"uri": "s3://bucket/model"}, "drain": {"preStopDelaySeconds": 0}},
    "several nodes": {"model": {"uri": "hf://a/b"}, "parallelism": {"tensor": 8, "pipeline": 2}},
    "overlay": {
        "model": {"uri": "pvc://weights/a"},
        "adapters": [{"name": "x", "uri": "pvc://other/x"}, {"name": "y", "uri": "pvc://weights/y"}],
        "engine": {
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "b"}}},
            ],
            "envFrom": [
                {"configMapRef": {"name": "c", "optional": True}},
                {"prefix": "P_", "secretRef": {"name": "s"}},
            ],
            "extraArgs": ["--x=1"],
        },
        "podTemplate": {
            "tolerations": [
                {"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
                {"operator": "Exists"},
            ],
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"name": "data", "emptyDir": {}}],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        },
    },
}


@pytest.fixture
async def api(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiServer]:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    async with ApiServer.from_env() as server:
        yield server


@pytest.fixture(params=SPECS)
async def deployment(request: pytest.FixtureRequest, api: ApiServer) -> LLMDeployment:
    """In a namespace of its own, which takes restricted pods only, unless the manifest opens the node's disk."""
    spec = SPECS[request.param]
    level = "privileged" if spec.get("cache", {}).get("type") == "HostPath" else "restricted"
    name = f"n-{uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": level}
    await api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
    metadata = {"name": "chat", "namespace": name, "uid": str(uuid4())}
    return LLMDeployment.parse({"metadata": metadata, "spec": spec})


async def create(api: ApiServer, body: dict[str, Any]) -> dict[str, Any]:
    """As it is, an unknown or repeated field being an error."""
    path = path_of(body["kind"], body["metadata"]["namespace"])
    made: dict[str, Any] = await api.request("POST", f"{path}?fieldValidation=Strict", body)
    return made


async def test_the_pod_is_let_in(api: ApiServer, deployment: LLMDeployment) -> None:
    made = await create(api, render(deployment, "0123456789", 0, "engine", "1"))
    assert made["metadata"]["name"] == "chat-0123456789-0"


async def test_the_pods_of_a_group_are_let_in(api: ApiServer, deployment: LLMDeployment) -> None:
    group = render_group(deployment, "0123456789", 0, "engine", "1")["spec"]["leaderWorkerTemplate"]
    for member in ("leaderTemplate", "workerTemplate"):
        template = group[member]
        metadata = {**template["metadata"], "name": member.lower(), "namespace": deployment.namespace}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        made = await create(api, body)
        assert made["metadata"]["labels"] == template["metadata"]["labels"]


async def test_the_other_objects_are_let_in(api: ApiServer, deployment: LLMDeployment) -> None:
    for body in [*desired_objects(deployment), config_map(deployment, "0123456789", "2026-01-01T00:00:00Z")]:
        made = await create(api, body)
        assert made["metadata"]["uid"]


async def test_what_is_not_restricted_is_refused_here(api: ApiServer, deployment: LLMDeployment) -> None:
    """The others pass because of what is rendered, not because nobody looks."""
    body = render(deployment, "0123456789", 0, "engine", "1")
    body["spec"]["containers"][0]["securityContext"] = {"privilege": True}
    with pytest.raises(ApiError, match="unknown field"):
        await create(api, body)
    if deployment.spec.cache.type != "HostPath":
        body["spec"]["containers"][0]["securityContext"] = {}
        with pytest.raises(ApiError, match="violates PodSecurity"):
            await create(api, body)
