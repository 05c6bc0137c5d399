"""What a person reads: kubectl explain, get, describe and scale of an LLMDeployment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.deployment import MODEL, Deployment, events
from e2e.kubectl import Cluster
from e2e.waiting import wait_until

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def deployment(cluster: Cluster, installed: None) -> Iterator[Deployment]:
    made = Deployment(cluster, "smollm2", model={"name": "smollm2-135m"})
    made.apply()
    try:
        made.wait_settled(1)
        yield made
    finally:
        made.delete()


def shown(cluster: Cluster, *command: str) -> str:
    said = cluster.kubectl(*command)
    print(f"\n$ kubectl {' '.join(command)}\n{said}")
    return said


def test_explain(cluster: Cluster, installed: None) -> None:
    said = shown(cluster, "explain", "llmd.spec")
    assert "What the user wants." in said
    for field in ("autoscaling", "cache", "engine", "model", "replicas", "rollout", "routing"):
        assert f"  {field}\t" in said
    assert "-required-" in said
    deep = shown(cluster, "explain", "llmd.spec.rollout.maxSurge")
    assert "Replicas beyond the wanted number during a rollout." in deep


def test_get(deployment: Deployment, cluster: Cluster) -> None:
    head, row = shown(cluster, "get", "llmd", deployment.name).splitlines()
    assert head.split() == ["NAME", "MODEL", "DESIRED", "READY", "UP-TO-DATE", "STATUS", "AGE"]
    assert row.split()[:6] == ["smollm2", MODEL, "1", "1", "1", "EnoughReplicas"]
    head, row = shown(cluster, "get", "llmd", deployment.name, "-o", "wide").splitlines()
    assert head.split()[6:] == ["AGE", "URL", "REVISION", "CACHE", "DRAINING"]
    assert deployment.status()["currentRevision"] in row
    assert ":8080/v1" in row


def test_describe(deployment: Deployment, cluster: Cluster) -> None:
    deployment.wait_for("Progressing", "True", "RolloutComplete")
    wait_until(lambda: "RolloutCompleted" in events(deployment), "the event after the status", 60.0)
    said = shown(cluster, "describe", "llmd", deployment.name)
    for condition in ("Available", "Progressing", "SpecAccepted", "RouterSynced"):
        assert condition in said
    for event in ("RolloutStarted", "PodCreated", "RolloutCompleted"):
        assert event in said


def test_scale(deployment: Deployment, cluster: Cluster) -> None:
    assert "scaled" in shown(cluster, "scale", "llmd", deployment.name, "--replicas=2")
    deployment.wait_settled(2)
    wait_until(lambda: "Scaled" in events(deployment), "the event after the status", 60.0)
    assert "Scaled" in shown(cluster, "describe", "llmd", deployment.name)
    shown(cluster, "scale", "llmd", deployment.name, "--replicas=1")
    deployment.wait_settled(1)
