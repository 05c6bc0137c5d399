"""To zero when nobody asks, and back for 50 requests at once, none of which is lost."""

from __future__ import annotations

import time

import pytest

from e2e.deployment import Deployment
from e2e.kubectl import Cluster
from e2e.under_load import burst, failures
from e2e.waiting import wait_until

pytestmark = pytest.mark.timeout(900)

HELD = 50
AUTOSCALING = {
    "minReplicas": 0,
    "maxReplicas": 2,
    "scaleDown": {"stabilizationWindowSeconds": 5, "periodSeconds": 5},
    "scaleToZero": {"idleSeconds": 20},
}


def test_to_zero_and_back(cluster: Cluster, installed: None, router_url: str) -> None:
    deployment = Deployment(
        cluster, "zero", autoscaling=AUTOSCALING, routing={"coldStart": {"holdSeconds": 180, "maxQueued": 64}}
    )
    deployment.apply()
    try:
        deployment.wait_settled(1)
        begin = time.monotonic()
        deployment.wait_for("Available", "True", "ScaledToZero", 120.0)
        wait_until(lambda: not deployment.pods(), "no pod", 120.0, deployment.describe)
        print(f"\nzero replicas {time.monotonic() - begin:.0f} s after the last one was settled")
        woken = burst("held while at zero", router_url, "zero", HELD)
        assert not woken.failed, failures(woken)
        assert woken.requests == HELD
        reasons = [each["reason"] for each in deployment.status()["autoscaling"]["history"]]
        print(f"\nits last decisions: {reasons}")
        assert any("held requests" in reason for reason in reasons)
        deployment.wait_for("Available", "True", "ScaledToZero", 120.0)  # and to sleep again
    finally:
        deployment.delete()
