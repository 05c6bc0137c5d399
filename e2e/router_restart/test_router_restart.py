"""Each router pod is deleted in turn while a client streams through them."""

from __future__ import annotations

from functools import partial

import pytest

from e2e.deployment import Deployment
from e2e.kubectl import Cluster
from e2e.routers import ready_routers
from e2e.under_load import under_load
from e2e.waiting import wait_until

pytestmark = pytest.mark.timeout(900)


def test_every_router_is_replaced(cluster: Cluster, installed: None, router_url: str) -> None:
    deployment = Deployment(cluster, "routers", replicas=2)
    deployment.apply()
    try:
        deployment.wait_settled(2)
        before = names_of_ready(cluster)
        assert len(before) >= 2
        with under_load("router pods deleted", router_url, ["routers"]):
            for router in sorted(before):
                cluster.kubectl("delete", "pod", router, "--wait=false")
                wait_until(
                    partial(is_replaced, cluster, router, len(before)), f"a successor of {router}", 120.0
                )
        assert not before & names_of_ready(cluster)
        deployment.wait_for("RouterSynced", "True", "Synced", 60.0)
    finally:
        deployment.delete()


def names_of_ready(cluster: Cluster) -> set[str]:
    return {router.name for router in ready_routers(cluster)}


def is_replaced(cluster: Cluster, gone: str, count: int) -> bool:
    ready = names_of_ready(cluster)
    return gone not in ready and len(ready) == count
