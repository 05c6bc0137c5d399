"""`kubectl drain` evicts the engine pods one by one while a client streams; the PodDisruptionBudget paces it.

A single node cannot be drained whole, so the drain selects one deployment's pods, and the node takes pods again as
soon as the drain has begun: otherwise the evicted pods' successors had nowhere to go.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from e2e.deployment import LABEL_DEPLOYMENT, Deployment
from e2e.kubectl import Cluster
from e2e.under_load import under_load
from e2e.waiting import wait_until

pytestmark = pytest.mark.timeout(900)


def test_eviction_one_by_one(cluster: Cluster, installed: None, router_url: str) -> None:
    deployment = Deployment(cluster, "drain", replicas=2)
    deployment.apply()
    try:
        deployment.wait_settled(2)
        before = deployment.uids()
        with under_load("kubectl drain", router_url, ["drain"]):
            said = drain(cluster, deployment)
            deployment.wait_settled(2)
        assert not before & deployment.uids()
        # The second one had to wait until the first one's successor served.
        assert "Cannot evict pod as it would violate the pod's disruption budget" in said
    finally:
        deployment.delete()


def drain(cluster: Cluster, deployment: Deployment) -> str:
    """What kubectl said, after it evicted every pod that there was when it began."""
    (node,) = {pod["spec"]["nodeName"] for pod in deployment.pods()}
    selector = f"--pod-selector={LABEL_DEPLOYMENT}={deployment.name}"
    command = f"kubectl drain {node} {selector} --delete-emptydir-data --timeout=300s 2>&1"
    cordoned = ("get", "node", node, "-o", "jsonpath={.spec.unschedulable}")
    with ThreadPoolExecutor(1) as background:
        draining = background.submit(cluster.run, "bash", "-c", command, timeout_s=330.0)
        try:
            wait_until(lambda: cluster.kubectl(*cordoned) == "true", "the node is cordoned", 30.0)
        finally:
            cluster.kubectl("uncordon", node)
        return draining.result()
