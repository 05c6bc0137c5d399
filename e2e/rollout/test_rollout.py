"""New engine options and a bad image while a client streams."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.deployment import LABEL_REVISION, Deployment
from e2e.kubectl import Cluster
from e2e.under_load import under_load

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def deployment(cluster: Cluster, installed: None) -> Iterator[Deployment]:
    made = Deployment(cluster, "rollout", replicas=2)
    made.apply()
    try:
        made.wait_settled(2)
        yield made
    finally:
        made.delete()


def test_new_engine_options(deployment: Deployment, router_url: str) -> None:
    before = deployment.uids()
    with under_load("rollout of new engine options", router_url, [deployment.name]) as load:
        deployment.apply(engine={"maxNumSeqs": 6})
        deployment.wait_for("Progressing", "True", "RolloutComplete")
        deployment.wait_settled(2)
        load.wait_for(3)  # old ones and new ones
    assert not before & deployment.uids()
    wanted = deployment.status()["updateRevision"]
    assert {pod["metadata"]["labels"][LABEL_REVISION] for pod in deployment.pods()} == {wanted}


def test_a_bad_image_stalls_and_old_pods_serve(deployment: Deployment, router_url: str) -> None:
    before = deployment.uids()
    image = "localhost/no-such-engine:e2e"
    with under_load("rollout of a bad image", router_url, [deployment.name]):
        deployment.apply(engine={"image": image}, rollout={"progressDeadlineSeconds": 20})
        stalled = deployment.wait_for("Progressing", "False", "ProgressDeadlineExceeded", 90.0)
        degraded = deployment.wait_for("Degraded", "True", "ImagePullFailed")
        assert deployment.condition("Available")["status"] == "True"
        assert before < deployment.uids()
        deployment.apply(engine={"image": None})
        deployment.wait_for("Progressing", "True", "RolloutComplete")
        deployment.wait_settled(2)
    print(f"\nthe conditions said: {stalled['message']} | {degraded['message']}")
    assert image in degraded["message"]
    assert "ImagePull" in stalled["message"]
    assert deployment.uids() == before
