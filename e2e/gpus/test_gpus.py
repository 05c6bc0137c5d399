"""A node that says it has GPUs: requests, fragmentation, Unschedulable, and a rollout with no GPU to spare.

The capacity is patched in, so pods compute on the CPU; what the scheduler, the operator and the user see is real.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.deployment import Deployment, events
from e2e.kubectl import Cluster
from e2e.under_load import under_load
from e2e.waiting import wait_until

pytestmark = pytest.mark.timeout(900)

GPUS = 2
GPU = "nvidia.com/gpu"
PATH = "/status/capacity/nvidia.com~1gpu"
# One GPU each: unset acceleratorCount is parallelism.tensor.
ON_GPU: dict[str, Any] = {
    "resources": {"acceleratorCount": None},
    "rollout": {"insufficientCapacitySeconds": 5},
}


@pytest.fixture(scope="module")
def gpus(cluster: Cluster) -> Iterator[None]:
    """The first node has GPUS of them."""
    node = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"][0]["metadata"]["name"]
    patch_node(cluster, node, [{"op": "add", "path": PATH, "value": str(GPUS)}])
    try:
        wait_until(lambda: allocatable(cluster, node) == str(GPUS), "GPUs to allocate", 60.0)
        yield
    finally:
        patch_node(cluster, node, [{"op": "remove", "path": PATH}])


@pytest.fixture(scope="module")
def full(cluster: Cluster, installed: None, gpus: None) -> Iterator[Deployment]:
    """A deployment that holds every GPU."""
    made = Deployment(cluster, "gpu", replicas=GPUS, **ON_GPU)
    made.apply()
    try:
        made.wait_settled(GPUS)
        yield made
    finally:
        made.delete()


def test_each_pod_asks_for_its_gpu(full: Deployment) -> None:
    for pod in full.pods():
        (engine,) = pod["spec"]["containers"]
        assert engine["resources"]["limits"][GPU] == engine["resources"]["requests"][GPU] == "1"


def test_a_rollout_without_a_spare_gpu_replaces_in_place(full: Deployment, router_url: str) -> None:
    before = full.uids()
    with under_load("GPU rollout in place", router_url, [full.name]):
        full.apply(engine={"maxNumSeqs": 6})
        full.wait_for("Progressing", "True", "RolloutComplete")
        full.wait_settled(GPUS)
    assert not before & full.uids()
    assert "InsufficientGPU" in events(full)


def test_free_gpus_that_do_not_suffice(cluster: Cluster, full: Deployment, router_url: str) -> None:
    """One of two GPUs is free, and a pod wants both: fragmentation."""
    full.scale(1)
    full.wait_settled(1)
    # Its container needs a second GPU that is no real one; where it is placed is what counts here.
    large = Deployment(cluster, "large", **ON_GPU, parallelism={"tensor": 2})
    large.apply()
    try:
        with under_load("GPU fragmentation", router_url, [full.name]):
            unable = large.wait_for("AbleToScale", "False", "InsufficientCapacity", 120.0)
            waiting = large.wait_for("Available", "False", "NotEnoughReplicas", 60.0)
            assert "no node has room" in waiting["message"]
            assert "Insufficient nvidia.com/gpu" in unable["message"]
            assert "InsufficientGPU" in events(large)
        full.scale(0)
        wait_until(lambda: large.pods()[0]["spec"].get("nodeName"), "a node for it", 120.0, large.describe)
        wait_until(lambda: not large.condition("AbleToScale"), "no want of capacity", 60.0, large.describe)
    finally:
        large.delete()
    print(f"\nthe condition said: {unable['message']}")


def patch_node(cluster: Cluster, node: str, patch: list[dict[str, str]]) -> None:
    cluster.kubectl("patch", "node", node, "--subresource=status", "--type=json", "-p", json.dumps(patch))


def allocatable(cluster: Cluster, node: str) -> str | None:
    value = cluster.get("node", node)["status"]["allocatable"].get(GPU)
    return value if value is None else str(value)
