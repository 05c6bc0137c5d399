"""reconcile() against a real API server. Kubelet and routers are played here: pods become ready at once, routers obey."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from shoal_api.kube import MERGE_PATCH, ApiError, ApiServer
from shoal_api.names import ANNOTATION_DRAIN
from shoal_api.router_state_pb2 import (
    STANDING_CORDONED,
    STANDING_NOT_READY,
    STANDING_ROUTABLE,
    Endpoint,
    Model,
    State,
)
from shoal_operator.cluster import Cluster, path_of
from shoal_operator.reconcile import Reconciler, ReconcileSettings

ROOT = Path(__file__).parents[2]
NAME = "smollm2"
MOMENT = "2026-01-01T00:00:00Z"


class Fleet:
    """The cluster around the operator: `step()` lets kubelet and routers do their part."""

    def __init__(self, api: ApiServer, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self.expected = 1
        self.endpoints: list[Endpoint] = []
        self.in_flight: dict[str, int] = {}
        self.waiting = 0
        self.held = 0
        self.broken_images: set[str] = set()

    def fresh(self) -> list[State]:
        model = Model(namespace=self.namespace, deployment=NAME, held=self.held, idle_s=0)
        return [State(router="r", sequence=1, synced=True, endpoints=self.endpoints, models=[model])]

    async def pods(self) -> list[dict]:
        return await Cluster(self.api).owned("Pod", self.namespace, NAME)

    async def step(self) -> None:
        self.endpoints = []
        for pod in await self.pods():
            meta = pod["metadata"]
            if meta.get("deletionTimestamp"):
                continue
            works = pod["spec"]["containers"][0]["image"] not in self.broken_images
            if works and not pod["status"].get("conditions"):
                ready = {"type": "Ready", "status": "True", "lastTransitionTime": MOMENT}
                status = {"phase": "Running", "podIP": "10.0.0.1", "conditions": [ready]}
                path = path_of("Pod", self.namespace, meta["name"], "status")
                await self.api.request("PATCH", path, {"status": status}, content_type=MERGE_PATCH)
            drained = ANNOTATION_DRAIN in meta.get("annotations", {})
            standing = STANDING_CORDONED if drained else STANDING_ROUTABLE if works else STANDING_NOT_READY
            self.endpoints.append(
                Endpoint(
                    namespace=self.namespace,
                    pod=meta["name"],
                    uid=meta["uid"],
                    standing=standing,
                    in_flight=self.in_flight.get(meta["name"], 0),
                    waiting=self.waiting,
                    max_num_seqs=10,
                )
            )


class World:
    def __init__(self, api: ApiServer, namespace: str) -> None:
        self.api = api
        self.fleet = Fleet(api, namespace)
        self.key = f"{namespace}/{NAME}"
        self.cluster = Cluster(api)
        settings = ReconcileSettings("engine:1", "http://shoal-router:8080/v1", "test")
        self.reconciler = Reconciler(self.cluster, self.fleet, settings)

    async def settle(self, rounds: int = 12) -> None:
        for _ in range(rounds):
            await self.reconciler.reconcile(self.key)
            await self.fleet.step()
        await self.reconciler.reconcile(self.key)

    async def edit(self, **spec: object) -> None:
        path = path_of("LLMDeployment", self.fleet.namespace, NAME)
        await self.api.request("PATCH", path, {"spec": spec}, content_type=MERGE_PATCH)

    async def found(self) -> dict:
        found = await self.cluster.get("LLMDeployment", self.fleet.namespace, NAME)
        assert found is not None
        return found

    async def conditions(self) -> dict[str, tuple[str, str]]:
        found = await self.found()
        return {each["type"]: (each["status"], each["reason"]) for each in found["status"]["conditions"]}

    async def versions(self) -> dict[str, str]:
        """Resource version of everything that belongs to the deployment: a write changes one."""
        objects = [await self.found()]
        for kind in ("Pod", "ConfigMap", "Service", "PodDisruptionBudget"):
            objects += await self.cluster.owned(kind, self.fleet.namespace, NAME)
        return {
            f"{each.get('kind')}/{each['metadata']['name']}/{each['metadata']['uid']}": each["metadata"][
                "resourceVersion"
            ]
            for each in objects
        }


@pytest.fixture
async def world(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    async with ApiServer.from_env() as api:
        await install_crd(api)
        namespace = f"n-{uuid4().hex[:8]}"
        await api.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
        manifest = yaml.safe_load((ROOT / "examples" / "smollm2.yaml").read_text())
        manifest["metadata"]["namespace"] = namespace
        await api.request("POST", path_of("LLMDeployment", namespace), manifest)
        yield World(api, namespace)


async def install_crd(api: ApiServer) -> None:
    crd = yaml.safe_load((ROOT / "crds" / "llmdeployments.serving.shoal.dev.yaml").read_text())
    try:
        await api.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
    except ApiError as error:
        if error.reason != "AlreadyExists":
            raise
    while not await Cluster(api).served("serving.shoal.dev/v1alpha1"):
        pass


async def test_a_new_deployment_becomes_available(world: World):
    await world.settle()
    found = await world.found()
    assert found["status"]["routableReplicas"] == 2
    assert found["status"]["url"] == "http://shoal-router:8080/v1"
    conditions = await world.conditions()
    assert conditions["Available"] == ("True", "EnoughReplicas")
    assert conditions["SpecAccepted"] == ("True", "Accepted")
    assert conditions["Progressing"] == ("True", "RolloutComplete")


async def test_a_quiet_deployment_gets_no_write(world: World):
    await world.settle()
    before = await world.versions()
    for _ in range(5):
        await world.reconciler.reconcile(world.key)
    assert await world.versions() == before


async def test_scaling_down_waits_for_the_requests_of_the_victim(world: World):
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


async def test_a_drain_is_taken_back_when_demand_returns(world: World):
    await world.settle()
    uids = {pod["metadata"]["uid"] for pod in await world.fleet.pods()}
    world.fleet.in_flight = {pod["metadata"]["name"]: 1 for pod in await world.fleet.pods()}
    await world.edit(replicas=1)
    await world.settle(3)
    await world.edit(replicas=2)
    await world.settle(3)
    assert {pod["metadata"]["uid"] for pod in await world.fleet.pods()} == uids
    assert (await world.found())["status"]["drainingReplicas"] == 0


async def test_new_options_replace_every_pod_and_never_go_below_the_wanted_number(world: World):
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


async def test_a_bad_image_stalls_and_takes_nothing_away(world: World):
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


async def test_a_pod_that_no_api_server_takes_is_refused_and_what_serves_goes_on(world: World):
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


async def test_a_newer_operator_rolls_nothing(world: World):
    await world.settle()
    before = await world.versions()
    settings = ReconcileSettings("engine:2", "http://shoal-router:8080/v1", "newer")
    world.reconciler = Reconciler(world.cluster, world.fleet, settings)
    await world.settle()
    assert await world.versions() == before


async def test_suspend_ends_all_and_keeps_the_number(world: World):
    await world.settle()
    await world.edit(suspend=True)
    await world.settle()
    assert await world.fleet.pods() == []
    assert (await world.conditions())["Available"][1] == "Suspended"
    assert (await world.found())["spec"]["replicas"] == 2
    await world.edit(suspend=False)
    await world.settle()
    assert len(await world.fleet.pods()) == 2


async def test_a_user_is_told_what_happened(world: World):
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


async def test_load_adds_replicas_and_says_why(world: World):
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


async def test_held_requests_wake_a_deployment_from_zero(world: World):
    await world.edit(replicas=0, autoscaling={"maxReplicas": 3, "minReplicas": 0})
    await world.settle()
    assert await world.fleet.pods() == []
    assert (await world.conditions())["Available"] == ("True", "ScaledToZero")
    world.fleet.held = 2
    await world.settle()
    assert len(await world.fleet.pods()) == 1


async def test_another_autoscaler_is_named_and_left_alone(world: World):
    await world.edit(replicas=1, autoscaling={"maxReplicas": 3})
    target = {"apiVersion": "serving.shoal.dev/v1alpha1", "kind": "LLMDeployment", "name": NAME}
    metadata = {"name": "theirs", "namespace": world.fleet.namespace}
    body = {"metadata": metadata, "spec": {"scaleTargetRef": target, "maxReplicas": 9}}
    await world.api.request("POST", path_of("HorizontalPodAutoscaler", world.fleet.namespace), body)
    world.fleet.waiting = 50
    await world.settle()
    assert (await world.found())["spec"]["replicas"] == 1
    assert (await world.conditions())["AbleToScale"] == ("False", "ConflictingAutoscaler")
