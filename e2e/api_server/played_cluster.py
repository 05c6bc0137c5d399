"""The cluster around the operator, played: kubelet, routers and garbage collector on a real API server without nodes.

Pods are bound, become ready at once and end one step after they were told to; routers obey annotations at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from shoal_api.kube import MERGE_PATCH, ApiError, ApiServer
from shoal_api.names import ANNOTATION_DRAIN, LABEL_ROLE, ROLE_ENGINE, ROLE_PREFETCH
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
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
COLLECTED = ("Pod", "ConfigMap", "Service", "PodDisruptionBudget")
SETTINGS = ReconcileSettings("engine:1", "http://shoal-router:8080/v1", "test")


async def install_crd(api: ApiServer, crd: dict[str, Any] | None = None) -> None:
    """A CustomResourceDefinition, ours if none is given; returns when it is served."""
    if crd is None:
        crd = yaml.safe_load((ROOT / "crds" / "llmdeployments.serving.shoal.dev.yaml").read_text())
    try:
        await api.request("POST", CRDS, crd)
    except ApiError as error:
        if error.reason != "AlreadyExists":
            raise
    spec = crd["spec"]
    while not await Cluster(api).served(f"{spec['group']}/{spec['versions'][0]['name']}"):
        await asyncio.sleep(0.05)


class Fleet:
    """`step()` lets kubelet, routers and garbage collector do their part; returns how many writes that took."""

    def __init__(self, api: ApiServer, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self.expected = 1
        self.endpoints: list[Endpoint] = []
        self.in_flight: dict[str, int] = {}
        self.waiting = 0
        self.held = 0
        self.broken_images: set[str] = set()
        self.fetched = True  # whether pods that fetch a model ahead come to their end

    def fresh(self) -> list[State]:
        model = Model(namespace=self.namespace, deployment=NAME, held=self.held, idle_s=0)
        return [State(router="r", sequence=1, synced=True, endpoints=self.endpoints, models=[model])]

    async def pods(self) -> list[dict]:
        return await Cluster(self.api).owned("Pod", self.namespace, NAME)

    async def step(self) -> int:
        """What routers tell changes at the end, at once: an operator process hears them in the midst of a step."""
        writes = await self._collect_garbage()
        endpoints: list[Endpoint] = []
        for pod in await self.pods():
            try:
                writes += await self._step_of(pod)
            except ApiError as error:
                if error.reason != "NotFound":  # the operator process took it back meanwhile
                    raise
                writes += 1
                continue
            labels, ending = pod["metadata"]["labels"], pod["metadata"].get("deletionTimestamp")
            if labels.get(LABEL_ROLE) == ROLE_ENGINE and not ending:
                endpoints.append(self._endpoint(pod["metadata"], self._works(pod)))
        self.endpoints = endpoints
        return writes

    async def _step_of(self, pod: dict) -> int:
        if pod["metadata"].get("deletionTimestamp"):
            return await self._end(pod)
        if pod["metadata"]["labels"].get(LABEL_ROLE) == ROLE_PREFETCH:
            return await self._fetch(pod)
        writes = 0
        if not pod["spec"].get("nodeName"):
            writes += await self._bind(pod)
        ready = any(each["type"] == "Ready" for each in pod["status"].get("conditions", ()))
        if self._works(pod) and not ready:
            writes += await self._start(pod)
        return writes

    def _works(self, pod: dict) -> bool:
        return pod["spec"]["containers"][0]["image"] not in self.broken_images

    def _endpoint(self, meta: dict, works: bool) -> Endpoint:
        drained = ANNOTATION_DRAIN in meta.get("annotations", {})
        standing = STANDING_CORDONED if drained else STANDING_ROUTABLE if works else STANDING_NOT_READY
        return Endpoint(
            namespace=self.namespace,
            pod=meta["name"],
            uid=meta["uid"],
            standing=standing,
            in_flight=self.in_flight.get(meta["name"], 0),
            waiting=self.waiting,
            max_num_seqs=10,
        )

    async def _bind(self, pod: dict) -> int:
        name = pod["metadata"]["name"]
        target = {"apiVersion": "v1", "kind": "Node", "name": "node"}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        await self.api.request("POST", path_of("Pod", self.namespace, name, "binding"), body)
        return 1

    async def _start(self, pod: dict) -> int:
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": MOMENT}
        status = {"phase": "Running", "podIP": "10.0.0.1", "conditions": [ready]}
        path = path_of("Pod", self.namespace, pod["metadata"]["name"], "status")
        await self.api.request("PATCH", path, {"status": status}, content_type=MERGE_PATCH)
        return 1

    async def _fetch(self, pod: dict) -> int:
        phase = "Succeeded" if self.fetched else "Running"
        if pod["status"]["phase"] == phase:
            return 0
        path = path_of("Pod", self.namespace, pod["metadata"]["name"], "status")
        await self.api.request("PATCH", path, {"status": {"phase": phase}}, content_type=MERGE_PATCH)
        return 1

    async def _end(self, pod: dict) -> int:
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        await self.api.request("DELETE", path_of("Pod", self.namespace, pod["metadata"]["name"]), body)
        return 1

    async def _collect_garbage(self) -> int:
        """What is owned by an LLMDeployment that is gone goes too."""
        cluster = Cluster(self.api)
        alive = {each["metadata"]["uid"] for each in await cluster.all("LLMDeployment", self.namespace)}
        orphans = 0
        for kind in COLLECTED:
            for each in await cluster.owned(kind, self.namespace, NAME):
                meta = each["metadata"]
                references = meta.get("ownerReferences") or ()
                owners = {owner["uid"] for owner in references if owner["kind"] == "LLMDeployment"}
                if owners and not owners & alive and not meta.get("deletionTimestamp"):
                    await cluster.delete(kind, self.namespace, meta["name"], meta["uid"])
                    orphans += 1
        return orphans


class PlayedWorld:
    """One namespace with one LLMDeployment, a Reconciler for it and the fleet around both."""

    def __init__(self, api: ApiServer, namespace: str) -> None:
        self.api = api
        self.fleet = Fleet(api, namespace)
        self.key = f"{namespace}/{NAME}"
        self.cluster = Cluster(api)
        self.reconciler = Reconciler(self.cluster, self.fleet, SETTINGS)

    async def settle(self, rounds: int = 12) -> None:
        for _ in range(rounds):
            await self.reconciler.reconcile(self.key)
            await self.fleet.step()
        await self.reconciler.reconcile(self.key)

    async def apply(self, **spec: object) -> None:
        manifest = yaml.safe_load((ROOT / "examples" / "smollm2.yaml").read_text())
        manifest["metadata"]["namespace"] = self.fleet.namespace
        manifest["spec"].update(spec)
        await self.api.request("POST", path_of("LLMDeployment", self.fleet.namespace), manifest)

    async def edit(self, **spec: object) -> None:
        path = path_of("LLMDeployment", self.fleet.namespace, NAME)
        await self.api.request("PATCH", path, {"spec": spec}, content_type=MERGE_PATCH)

    async def delete(self) -> None:
        await self.api.request("DELETE", path_of("LLMDeployment", self.fleet.namespace, NAME))

    async def found(self) -> dict:
        found = await self.cluster.get("LLMDeployment", self.fleet.namespace, NAME)
        assert found is not None
        return found

    async def conditions(self) -> dict[str, tuple[str, str]]:
        found = await self.found()
        return {each["type"]: (each["status"], each["reason"]) for each in found["status"]["conditions"]}

    async def belongings(self) -> list[dict]:
        """Everything of the deployment but itself and its events."""
        found = []
        for kind in COLLECTED:
            for each in await self.cluster.owned(kind, self.fleet.namespace, NAME):
                found.append({**each, "kind": kind})
        return found

    async def versions(self) -> dict[str, str]:
        """Resource version of everything that belongs to the deployment: a write changes one."""
        objects = [await self.found(), *await self.belongings()]
        return {
            f"{each['kind']}/{each['metadata']['name']}/{each['metadata']['uid']}": each["metadata"][
                "resourceVersion"
            ]
            for each in objects
        }


async def new_world(api: ApiServer) -> PlayedWorld:
    """In a namespace of its own, still without an LLMDeployment."""
    namespace = f"n-{uuid4().hex[:8]}"
    await api.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    return PlayedWorld(api, namespace)


@asynccontextmanager
async def connected() -> AsyncIterator[ApiServer]:
    """The API server of $KUBECONFIG, with our CRD."""
    async with ApiServer.from_env() as api:
        await install_crd(api)
        yield api
