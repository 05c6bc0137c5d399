"""1 -> 3 -> 1 replicas while a client streams: nobody notices."""

from __future__ import annotations

import pytest

from e2e.deployment import Deployment
from e2e.kubectl import Cluster
from e2e.under_load import under_load

pytestmark = pytest.mark.timeout(900)


def test_one_three_one(cluster: Cluster, installed: None, router_url: str) -> None:
    deployment = Deployment(cluster, "scaling", replicas=1)
    deployment.apply()
    try:
        deployment.wait_settled(1)
        with under_load("scaling 1-3-1", router_url, ["scaling"]) as load:
            deployment.scale(3)
            deployment.wait_settled(3)
            load.wait_for(3)
            deployment.scale(1)
            deployment.wait_settled(1)
        assert len(load.answered_by()) == 3
    finally:
        deployment.delete()
