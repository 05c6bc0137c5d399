"""Replicas over several nodes, on a real API server that knows LeaderWorkerSet; its controller is played."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from e2e.api_server.leader_worker_sets import CRD, CRD_NAME, GroupFleet
from e2e.api_server.played_cluster import CRDS, SETTINGS, PlayedWorld, connected, install_crd, new_world
from shoal_api.kube import ApiError
from shoal_api.names import ANNOTATION_DRAIN, LABEL_REVISION, LABEL_ROLE, LABEL_SLOT
from shoal_api.spec import LLMDeployment
from shoal_operator.cluster import LWS_API, Cluster, path_of
from shoal_operator.leader_worker_set import render_group
from shoal_operator.reconcile import Reconciler

TWO_NODES = {"model": {"uri": "hf://a/b"}, "parallelism": {"tensor": 8, "pipeline": 2}, "resources": {}}


@pytest.fixture
async def world(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PlayedWorld]:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    async with connected() as api:
        await install_crd(api, CRD)
        found = await new_world(api)
        while not await stores_sets(found):
            await asyncio.sleep(0.1)
        found.fleet = GroupFleet(api, found.fleet.namespace)
        found.reconciler = Reconciler(found.cluster, found.fleet, SETTINGS)
        yield found
        # Other tests are of a cluster without it.
        await api.request("DELETE", f"{CRDS}/{CRD_NAME}")
        while await Cluster(api).served(LWS_API):
            await asyncio.sleep(0.05)


async def stores_sets(world: PlayedWorld) -> bool:
    """A kind that is installed anew is served a little before its objects can be listed."""
    try:
        await world.cluster.all("LeaderWorkerSet", world.fleet.namespace)
    except ApiError:
        return False
    return True


async def test_every_field_of_a_set_is_known(world: PlayedWorld):
    metadata = {"name": "big", "namespace": world.fleet.namespace, "uid": "u"}
    deployment = LLMDeployment.parse({"metadata": metadata, "spec": TWO_NODES})
    path = f"{path_of('LeaderWorkerSet', world.fleet.namespace)}?fieldValidation=Strict&dryRun=All"
    body = render_group(deployment, "0123456789", 0, "engine:1", "1")
    made = await world.api.request("POST", path, body)
    assert made["spec"]["leaderWorkerTemplate"]["size"] == 2
    body["spec"]["leaderWorkerTemplate"]["sise"] = 3
    with pytest.raises(ApiError, match="unknown field"):
        await world.api.request("POST", path, body)


async def test_each_replica_is_a_set_and_serves_through_its_leader(world: PlayedWorld):
    await world.apply(**TWO_NODES, replicas=2)
    await world.settle()
    sets = await world.fleet.sets()
    assert sorted(each["metadata"]["labels"][LABEL_SLOT] for each in sets) == ["0", "1"]
    roles = sorted(pod["metadata"]["labels"][LABEL_ROLE] for pod in await world.fleet.pods())
    assert roles == ["engine", "engine", "worker", "worker"]
    status = (await world.found())["status"]
    assert (status["replicas"], status["routableReplicas"]) == (2, 2)
    assert (await world.conditions())["Available"] == ("True", "EnoughReplicas")
    before = await versions(world)
    await world.settle(3)
    assert await versions(world) == before


async def test_a_set_without_pods_is_a_replica_and_is_not_made_twice(world: PlayedWorld):
    world.fleet.slow = True
    await world.apply(**TWO_NODES, replicas=2)
    await world.settle(4)
    assert len(await world.fleet.sets()) == 2
    status = (await world.found())["status"]
    assert (status["replicas"], status["readyReplicas"]) == (2, 0)
    await world.edit(replicas=1)
    await world.settle(4)
    assert len(await world.fleet.sets()) == 1


async def test_scaling_down_drains_the_leader_and_then_deletes_the_set(world: PlayedWorld):
    await world.apply(**TWO_NODES, replicas=2)
    await world.settle()
    leaders = [pod for pod in await world.fleet.pods() if pod["metadata"]["labels"][LABEL_ROLE] == "engine"]
    world.fleet.in_flight = {pod["metadata"]["name"]: 1 for pod in leaders}
    await world.edit(replicas=1)
    await world.settle(4)
    assert len(await world.fleet.sets()) == 2
    drained = [
        pod["metadata"]["name"]
        for pod in await world.fleet.pods()
        if ANNOTATION_DRAIN in pod["metadata"].get("annotations", {})
    ]
    assert len(drained) == 1
    world.fleet.in_flight = {}
    await world.settle()
    (left,) = await world.fleet.sets()
    assert f"{left['metadata']['name']}-0" not in drained
    assert len(await world.fleet.pods()) == 2


async def test_a_rollout_to_one_pod_a_replica_replaces_the_sets(world: PlayedWorld):
    await world.apply(**TWO_NODES, replicas=2)
    await world.settle()
    await world.edit(rollout={"type": "Recreate"})
    await world.edit(parallelism={"pipeline": 1})
    await world.settle(20)
    assert await world.fleet.sets() == []
    revisions = {pod["metadata"]["labels"][LABEL_REVISION] for pod in await world.fleet.pods()}
    assert revisions == {(await world.found())["status"]["currentRevision"]}
    assert len(await world.fleet.pods()) == 2


async def versions(world: PlayedWorld) -> dict[str, str]:
    sets = {
        each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in await world.fleet.sets()
    }
    return {**await world.versions(), **sets}


async def test_without_its_api_the_spec_is_rejected_and_says_what_to_install(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    async with connected() as api:
        world = await new_world(api)
        await world.apply(**TWO_NODES)
        await world.settle(2)
        assert (await world.conditions())["SpecAccepted"] == ("False", "MultiNodeRequiresLWS")
