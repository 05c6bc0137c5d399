"""reconcile() against a real API server. Kubelet and routers are played: pods become ready at once, routers obey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from e2e.api_server.played_cluster import NAME, PlayedWorld, connected, new_world
from shoal_api.kube import MERGE_PATCH, ApiError
from shoal_api.problems import Problem
from shoal_api.router_state_pb2 import STANDING_ROUTABLE
from shoal_api.spec import InvalidManifest, LLMDeployment
from shoal_operator.cluster import path_of
from shoal_operator.reconcile import Reconciler, ReconcileSettings


@pytest.fixture
async def world(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PlayedWorld]:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    async with connected() as api:
        found = await new_world(api)
        await found.apply()
        yield found


async def test_a_new_deployment_becomes_available(world: PlayedWorld):
    await world.settle()
    found = await world.found()
    assert found["status"]["routableReplicas"] == 2
    assert found["status"]["url"] == "http://shoal-router:8080/v1"
    conditions = await world.conditions()
    assert conditions["Available"] == ("True", "EnoughReplicas")
    assert conditions["SpecAccepted"] == ("True", "Accepted")
    assert conditions["Progressing"] == ("True", "RolloutComplete")


async def test_a_quiet_deployment_gets_no_write(world: PlayedWorld):
    await world.settle()
    before = await world.versions()
    for _ in range(5):
        await world.reconciler.reconcile(world.key)
    assert await world.versions() == before


async def test_scaling_down_waits_for_the_requests_of_the_victim(world: PlayedWorld):
    await world.settle()
    names = sorted(pod["metadata"]["name"] for pod in await world.fleet.pods())
    world.fleet.in_flight = dict.fromkeys(names, 1)
    await world.edit(replicas=1)
    await world.settle()
    assert sorted(pod["metadata"]["name"] for pod in await world.fleet.pods()) == names
    assert (await world.found())["status"]["drainingReplicas"] == 1
    world.fleet.in_flight = {}
    await world.settle()
    assert len(await world.fleet.pods()) == 1


async def test_a_drain_is_taken_back_when_demand_returns(world: PlayedWorld):
    await world.settle()
    uids = {pod["metadata"]["uid"] for pod in await world.fleet.pods()}
    world.fleet.in_flight = {pod["metadata"]["name"]: 1 for pod in await world.fleet.pods()}
    await world.edit(replicas=1)
    await world.settle(3)
    await world.edit(replicas=2)
    await world.settle(3)
    assert {pod["metadata"]["uid"] for pod in await world.fleet.pods()} == uids
    assert (await world.found())["status"]["drainingReplicas"] == 0


async def test_new_options_replace_every_pod_and_never_go_below_the_wanted_number(world: PlayedWorld):
    await world.settle()
    old = {pod["metadata"]["uid"] for pod in await world.fleet.pods()}
    await world.edit(engine={"maxNumSeqs": 4})
    for _ in range(20):
        await world.settle(1)
        serving = sum(each.standing == STANDING_ROUTABLE for each in world.fleet.endpoints)
        assert serving >= 2
        assert len(await world.fleet.pods()) <= 3
    new = {pod["metadata"]["uid"] for pod in await world.fleet.pods()}
    assert len(new) == 2
    assert not new & old
    found = await world.found()
    assert found["status"]["currentRevision"] == found["status"]["updateRevision"]


async def test_a_bad_image_stalls_and_takes_nothing_away(world: PlayedWorld):
    await world.settle()
    old = {pod["metadata"]["uid"] for pod in await world.fleet.pods()}
    world.fleet.broken_images = {"nothing:here"}
    await world.edit(engine={"image": "nothing:here"})
    await world.settle()
    assert old < {pod["metadata"]["uid"] for pod in await world.fleet.pods()}
    assert (await world.conditions())["Available"] == ("True", "EnoughReplicas")
    await world.edit(engine={"image": None})
    await world.settle()
    assert {pod["metadata"]["uid"] for pod in await world.fleet.pods()} == old


async def test_a_pod_that_no_api_server_takes_is_refused_and_what_serves_goes_on(world: PlayedWorld):
    await world.settle()
    before = {pod["metadata"]["uid"] for pod in await world.fleet.pods()}
    await world.edit(
        podTemplate={"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}}}
    )
    await world.settle()
    assert (await world.conditions())["SpecAccepted"] == ("False", "InvalidPodTemplate")
    assert {pod["metadata"]["uid"] for pod in await world.fleet.pods()} == before
    await world.edit(replicas=1)
    await world.settle()
    assert len(await world.fleet.pods()) == 1


async def test_a_newer_operator_rolls_nothing(world: PlayedWorld):
    await world.settle()
    before = await world.versions()
    settings = ReconcileSettings("engine:2", "http://shoal-router:8080/v1", "newer")
    world.reconciler = Reconciler(world.cluster, world.fleet, settings)
    await world.settle()
    assert await world.versions() == before


async def test_suspend_ends_all_and_keeps_the_number(world: PlayedWorld):
    await world.settle()
    await world.edit(suspend=True)
    await world.settle()
    assert await world.fleet.pods() == []
    assert (await world.conditions())["Available"][1] == "Suspended"
    assert (await world.found())["spec"]["replicas"] == 2
    await world.edit(suspend=False)
    await world.settle()
    assert len(await world.fleet.pods()) == 2


async def test_a_user_is_told_what_happened(world: PlayedWorld):
    await world.settle()
    await world.edit(replicas=1)
    await world.settle()
    events = await world.cluster.all("Event", world.fleet.namespace)
    reasons = [
        each["reason"]
        for each in events
        if each["involvedObject"]["uid"] == (await world.found())["metadata"]["uid"]
    ]
    for reason, count in {
        "PodCreated": 2,
        "RolloutStarted": 1,
        "RolloutCompleted": 1,
        "Scaled": 1,
        "DrainStarted": 1,
        "DrainCompleted": 1,
    }.items():
        assert reasons.count(reason) == count, reasons


async def test_load_adds_replicas_and_says_why(world: PlayedWorld):
    await world.edit(replicas=1, autoscaling={"maxReplicas": 3, "minReplicas": 1})
    await world.settle()
    assert len(await world.fleet.pods()) == 1
    world.fleet.waiting = 12  # one replica should carry 6 of its 10
    await world.settle()
    found = await world.found()
    assert found["spec"]["replicas"] == 3
    assert found["status"]["routableReplicas"] == 3
    last = found["status"]["autoscaling"]["history"][0]
    assert last["to"] == 3
    assert last["reason"]
    assert (await world.conditions())["ScalingActive"] == ("True", "ValidMetrics")


async def test_held_requests_wake_a_deployment_from_zero(world: PlayedWorld):
    await world.edit(replicas=0, autoscaling={"maxReplicas": 3, "minReplicas": 0})
    await world.settle()
    assert await world.fleet.pods() == []
    assert (await world.conditions())["Available"] == ("True", "ScaledToZero")
    world.fleet.held = 2
    await world.settle()
    assert len(await world.fleet.pods()) == 1


async def test_another_autoscaler_is_named_and_left_alone(world: PlayedWorld):
    await world.edit(replicas=1, autoscaling={"maxReplicas": 3})
    target = {"apiVersion": "serving.shoal.dev/v1alpha1", "kind": "LLMDeployment", "name": NAME}
    metadata = {"name": "theirs", "namespace": world.fleet.namespace}
    body = {"metadata": metadata, "spec": {"scaleTargetRef": target, "maxReplicas": 9}}
    await world.api.request("POST", path_of("HorizontalPodAutoscaler", world.fleet.namespace), body)
    world.fleet.waiting = 50
    await world.settle()
    assert (await world.found())["spec"]["replicas"] == 1
    assert (await world.conditions())["AbleToScale"] == ("False", "ConflictingAutoscaler")


async def test_a_spec_that_cannot_be_read_is_told_and_leaves_pods_alone(
    world: PlayedWorld, monkeypatch: pytest.MonkeyPatch
):
    await world.settle()
    before = await world.versions()

    def parse(_: object) -> LLMDeployment:
        raise InvalidManifest([Problem(("spec", "engine", "device"), "is not known here")])

    with monkeypatch.context() as patched:
        patched.setattr(LLMDeployment, "parse", parse)  # as an older operator would find a newer manifest
        await world.edit(replicas=1)
        await world.settle()
        assert (await world.conditions())["SpecAccepted"] == ("False", "InvalidSpec")
        assert (await world.conditions())["Available"] == ("True", "EnoughReplicas")
        found = await world.found()
        assert found["status"]["observedGeneration"] == found["metadata"]["generation"]
        told = await world.versions()
        await world.settle(3)
        assert await world.versions() == told
        pods = {key: version for key, version in told.items() if key.startswith("Pod/")}
        assert pods == {key: version for key, version in before.items() if key.startswith("Pod/")}
    await world.settle()
    assert (await world.conditions())["SpecAccepted"] == ("True", "Accepted")
    assert len(await world.fleet.pods()) == 1


async def test_a_new_object_that_cannot_be_read_has_a_status(
    world: PlayedWorld, monkeypatch: pytest.MonkeyPatch
):
    def parse(_: object) -> LLMDeployment:
        raise InvalidManifest([Problem(("spec",), "is not known here")])

    monkeypatch.setattr(LLMDeployment, "parse", parse)
    await world.settle(3)
    assert await world.conditions() == {"SpecAccepted": ("False", "InvalidSpec")}
    assert await world.fleet.pods() == []


async def test_old_revisions_are_forgotten_and_the_newest_kept(world: PlayedWorld):
    await world.edit(revisionHistoryLimit=2)
    seen = []
    for count in range(1, 6):
        await world.edit(engine={"maxNumSeqs": count})
        await world.settle(16)
        seen.append((await world.found())["status"]["currentRevision"])
    kept = {each["metadata"]["name"] for each in await world.belongings() if each["kind"] == "ConfigMap"}
    assert kept == {f"{NAME}-{revision}" for revision in seen[-3:]}
    await world.edit(engine={"maxNumSeqs": 4})
    await world.settle(16)
    assert len(await world.fleet.pods()) == 2


async def test_a_budget_that_is_not_wanted_any_more_is_deleted(world: PlayedWorld):
    await world.settle()
    assert "PodDisruptionBudget" in {each["kind"] for each in await world.belongings()}
    await world.edit(disruptionBudget={"disabled": True})
    await world.settle()
    assert "PodDisruptionBudget" not in {each["kind"] for each in await world.belongings()}


async def test_a_quota_that_refuses_pods_is_told(world: PlayedWorld):
    await world.settle()
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "2"}}}
    path = f"/api/v1/namespaces/{world.fleet.namespace}/resourcequotas"
    made = await world.api.request("POST", path, quota)
    await world.api.request(
        "PATCH",
        f"{path}/few/status",
        {"status": {"hard": {"pods": "2"}, "used": {"pods": "2"}}},
        content_type=MERGE_PATCH,
    )
    await world.edit(replicas=4)
    with pytest.raises(ApiError, match="quota"):
        await world.reconciler.reconcile(world.key)
    found = await world.found()
    assert found["status"]["desiredReplicas"] == 4
    available = next(each for each in found["status"]["conditions"] if each["type"] == "Available")
    assert available["status"] == "False"
    assert "exceeded quota" in available["message"]
    version = found["metadata"]["resourceVersion"]
    with pytest.raises(ApiError, match="quota"):
        await world.reconciler.reconcile(world.key)
    assert (await world.found())["metadata"]["resourceVersion"] == version
    await world.api.request("DELETE", f"{path}/few", {"preconditions": {"uid": made["metadata"]["uid"]}})
    await asyncio.sleep(0.5)
    await world.settle()
    assert len(await world.fleet.pods()) == 4
