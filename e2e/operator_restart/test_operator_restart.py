"""The operator is killed in mid-rollout, and upgraded, while a client streams: nobody notices either."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.deployment import LABEL_REVISION, Deployment
from e2e.kubectl import Cluster
from e2e.processes import kill, pids_of
from e2e.under_load import under_load
from e2e.waiting import wait_until

pytestmark = pytest.mark.timeout(900)

OPERATOR = "serving.shoal.dev/role=operator"
CHART = "charts/shoal"


@pytest.fixture(scope="module")
def deployment(cluster: Cluster, installed: None) -> Iterator[Deployment]:
    made = Deployment(cluster, "restart", replicas=2)
    made.apply()
    try:
        made.wait_settled(2)
        yield made
    finally:
        made.delete()


def test_sigkill_in_mid_rollout(cluster: Cluster, deployment: Deployment, router_url: str) -> None:
    before = deployment.uids()
    with under_load("operator SIGKILL in mid-rollout", router_url, [deployment.name]):
        deployment.apply(engine={"maxNumSeqs": 6})
        wait_until(lambda: before < deployment.uids(), "a pod of the new revision", 120.0)
        (operator,) = operators(cluster)
        kill(pids_of(operator["metadata"]["uid"], "operator"))
        wait_until(lambda: restarts(cluster) > 0, "the operator's container starts again", 120.0)
        deployment.wait_for("Progressing", "True", "RolloutComplete")
        deployment.wait_settled(2)
    revisions = [pod["metadata"]["labels"][LABEL_REVISION] for pod in deployment.pods()]
    assert revisions == [deployment.status()["updateRevision"]] * 2
    assert not before & deployment.uids()


def test_an_upgrade_leaves_pods_alone(cluster: Cluster, deployment: Deployment, router_url: str) -> None:
    pods, (operator,) = deployment.uids(), operators(cluster)
    # Another operator, and other engines for whoever starts from now on.
    changes = ("--set=operator.resyncSeconds=7", "--set=engine.image.tag=of-the-next-release")
    with under_load("operator upgrade", router_url, [deployment.name]):
        try:
            cluster.helm("upgrade", "shoal", CHART, "--reuse-values", *changes)
            wait_until(lambda: is_replaced(cluster, operator), "the new operator is ready", 90.0)
            cluster.kubectl("annotate", "llmd", deployment.name, "e2e/touched=yes", "--overwrite")
            time.sleep(20)  # it has looked at everything twice
            assert deployment.uids() == pods
        finally:
            cluster.helm("rollback", "shoal", "--wait")
        time.sleep(10)
    assert deployment.uids() == pods
    deployment.wait_settled(2)


def operators(cluster: Cluster) -> list[dict[str, Any]]:
    return cluster.list("pods", OPERATOR)


def restarts(cluster: Cluster) -> int:
    (operator,) = operators(cluster)
    return int(operator["status"]["containerStatuses"][0]["restartCount"])


def is_replaced(cluster: Cluster, before: dict[str, Any]) -> bool:
    found = operators(cluster)
    ready = [all(each["ready"] for each in pod["status"].get("containerStatuses", ())) for pod in found]
    return len(found) == 1 and found[0]["metadata"]["uid"] != before["metadata"]["uid"] and all(ready)
