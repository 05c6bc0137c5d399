"""Replicas and models of a cluster, seen through a real list and watch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from shoal_api import names
from shoal_router.app import Router
from shoal_router.kubernetes_discovery import KubernetesDiscovery, address_of, deployment_of
from shoal_router.models import ModelTable
from shoal_router.policy import Weights
from shoal_router.routing import Routing
from tests.router.cluster import DEPLOYMENTS, PODS, Cluster, llm, pod, serving
from tests.router.conftest import Run
from tests.router.scripted import (
    FAST,
    LAST_CHUNK,
    PING,
    Answer,
    Client,
    Replica,
    chat,
    chunk,
    get,
    post,
    stream_until,
    until,
)


@dataclass
class InCluster:
    """A router that finds its replicas through `cluster`."""

    cluster: Cluster
    router: Router

    async def ask(self, request: bytes) -> Answer:
        client = await Client.connect(self.router.port)
        try:
            return await client.ask(request)
        finally:
            client.close()

    def states(self) -> dict[str, str]:
        return {e.name: "cordoned" if e.cordoned else e.state.value for e in self.router.endpoints}


@asynccontextmanager
async def routing(cluster: Cluster, *, sync: bool = True, **how: Any) -> AsyncIterator[InCluster]:
    async with serving(cluster) as api:
        discovery = KubernetesDiscovery(api, **how)
        router = Router(FAST, discovery, rng=random.Random(0))
        await router.start()
        try:
            if sync:
                await until(lambda: discovery.synced)
                await asyncio.sleep(0.01)
            yield InCluster(cluster, router)
        finally:
            await router.stop(1.0)


def drained(found: dict[str, Any]) -> dict[str, Any]:
    marks = {names.ANNOTATION_DRAIN: "2026-01-01T00:00:00Z"}
    return {**found, "metadata": {**found["metadata"], "annotations": marks}}


def test_pods_come_and_go_and_answer_under_their_names(run: Run) -> None:
    async def scenario() -> None:
        cluster, replica = Cluster(), Replica()
        await replica.start()
        async with routing(cluster) as c:
            cluster.put(PODS, pod("m-1-0", port=replica.port))
            await until(lambda: c.states() == {"m-1-0": "healthy"})
            answer = await c.ask(post())
            assert (answer.status, answer.headers["x-shoal-replica"]) == (200, "m-1-0")
            cluster.remove(PODS, "default/m-1-0")
            await until(lambda: c.states() == {})
        await replica.kill()

    run(scenario())


def test_cordoned_pod_gets_nothing_new_and_finishes_what_it_has(run: Run) -> None:
    release = asyncio.Event()

    async def scenario() -> None:
        cluster, first, second = Cluster(), Replica(script=stream_until(release)), Replica()
        await first.start()
        await second.start()
        cluster.put(PODS, pod("a", port=first.port))
        async with routing(cluster) as c:
            await until(lambda: c.states() == {"a": "healthy"})
            running = await Client.connect(c.router.port)
            running.writer.write(post(body=chat("hi", stream=True)))
            await running.head()
            cluster.put(PODS, drained(pod("a", port=first.port)))
            await until(lambda: c.states() == {"a": "cordoned"})
            answer = await c.ask(post())
            assert (answer.status, answer.code) == (503, "no_replica_ready")
            cluster.put(PODS, pod("b", port=second.port))
            await until(lambda: c.states().get("b") == "healthy")
            for _ in range(4):
                assert (await c.ask(post())).headers["x-shoal-replica"] == "b"
            assert len(first.requests) == 1
            release.set()
            end = PING + chunk(b"data: [DONE]\n\n") + LAST_CHUNK
            assert await running.reader.readexactly(len(end)) == end
            running.close()
        await first.kill()
        await second.kill()

    run(scenario())


def test_model_without_replicas_is_known_and_the_router_is_ready(run: Run) -> None:
    async def scenario() -> None:
        cluster = Cluster()
        cluster.put(DEPLOYMENTS, llm("m"))
        async with routing(cluster) as c:
            answer = await c.ask(post())
            assert (answer.status, answer.code) == (503, "no_replica_ready")
            assert int(answer.headers["retry-after"]) > 0
            assert (await c.ask(post(body={"model": "other"}))).code == "model_not_found"
            assert [m["id"] for m in (await c.ask(get("/v1/models"))).json["data"]] == ["m"]
            assert (await c.ask(get("/v1/models/m"))).json["id"] == "m"
            assert (await c.ask(get("/ready"))).json == {"status": "ready", "replicas": 0}
            cluster.remove(DEPLOYMENTS, "default/m")
            await until(lambda: not c.router.discovery.deployments)

    run(scenario())


def test_router_is_not_ready_before_it_has_seen_the_cluster(run: Run) -> None:
    async def scenario() -> None:
        cluster = Cluster()
        cluster.available = False
        async with routing(cluster, sync=False) as c:
            await until(lambda: bool(cluster.asked))
            assert (await c.ask(get("/ready"))).status == 503
            cluster.available = True
            await until(lambda: c.router.discovery.synced is True)
            assert (await c.ask(get("/ready"))).status == 200

    run(scenario())


@pytest.mark.parametrize(
    ("how", "seen"),
    [
        ({}, {"a"}),
        ({"namespaces": ("x", "y")}, {"b", "c"}),
        ({"namespaces": ("*",)}, {"a", "b", "c"}),
        ({"namespaces": ("*",), "selector": "team=t"}, {"c"}),
    ],
)
def test_namespaces_and_selector_choose_the_pods(run: Run, how: dict[str, Any], seen: set[str]) -> None:
    async def scenario() -> None:
        cluster = Cluster()
        for name, namespace in (("a", "default"), ("b", "x"), ("c", "y")):
            cluster.put(PODS, pod(name, namespace=namespace))
            cluster.put(
                DEPLOYMENTS, llm("m", namespace=namespace, labels={"team": "t"} if name == "c" else {})
            )
        async with routing(cluster, **how) as c:
            await until(lambda: set(c.states()) == seen)

    run(scenario())


def test_pods_of_one_name_in_two_namespaces_are_two_replicas(run: Run) -> None:
    async def scenario() -> None:
        cluster = Cluster()
        for namespace in ("x", "y"):
            cluster.put(PODS, pod("a", namespace=namespace))
        async with routing(cluster, namespaces=("*",)) as c:
            await until(lambda: len(c.router.endpoints) == 2)
            assert len({e.identity for e in c.router.endpoints}) == 2

    run(scenario())


def test_unreachable_pods_have_no_address() -> None:
    running = pod("a", port=7)
    address = address_of(running)
    assert address is not None
    assert (address.uid, address.deployment, address.port, address.cordoned) == ("uid-a", "m", 7, False)
    ending = {**running, "metadata": {**running["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}}
    assert address_of(ending) is None
    assert address_of({**running, "status": {"phase": "Pending"}}) is None
    assert address_of({**running, "status": {"phase": "Failed", "podIP": "10.0.0.1"}}) is None


def test_only_a_deployment_that_wakes_by_itself_holds_requests() -> None:
    asleep = {"minReplicas": 0, "maxReplicas": 2}
    assert deployment_of(llm("m", replicas=0)).max_held == 0
    awake = {"minReplicas": 1, "maxReplicas": 2}
    assert deployment_of(llm("m", replicas=1, autoscaling=awake)).max_held == 0
    assert deployment_of(llm("m", replicas=1, autoscaling=asleep)).max_held == 256, "it is waking up"
    assert deployment_of(llm("m", replicas=0, suspend=True, autoscaling=asleep)).max_held == 0
    held = deployment_of(llm("m", replicas=0, autoscaling=asleep, model={"uri": "file:///m", "name": "n"}))
    assert (held.max_held, held.hold_s, held.models) == (256, 600.0, ("n",))


def test_a_name_belongs_to_the_oldest_deployment_that_has_it(run: Run) -> None:
    def named(name: str, created: str, model: str) -> dict[str, Any]:
        found = llm(name, model={"uri": "file:///m", "name": model})
        found["metadata"]["creationTimestamp"] = created
        return found

    async def scenario() -> None:
        cluster, old, young = Cluster(), Replica(models=("x",)), Replica(models=("x",))
        cluster.put(DEPLOYMENTS, named("young", "2026-01-02T00:00:00Z", "x"))
        for name, replica in (("old", old), ("young", young)):
            await replica.start()
            found = pod(name, port=replica.port)
            found["metadata"]["labels"][names.LABEL_DEPLOYMENT] = name
            cluster.put(PODS, found)
        async with routing(cluster) as c:
            await until(lambda: c.states() == {"old": "healthy", "young": "healthy"})

            async def served_by() -> set[str]:
                answers = [await c.ask(post(body={"model": "x"})) for _ in range(4)]
                return {answer.headers["x-shoal-replica"] for answer in answers}

            assert await served_by() == {"young"}, "old's pod alone has no claim: its deployment is not there"
            cluster.put(DEPLOYMENTS, named("old", "2026-01-01T00:00:00Z", "x"))
            await until(lambda: len(c.router.discovery.deployments) == 2)
            await asyncio.sleep(0.05)
            assert await served_by() == {"old"}
            owned = {each.name: each.models for each in c.router.discovery.deployments}
            assert owned == {"old": ("x",), "young": ()}
            cluster.remove(DEPLOYMENTS, "default/old")
            await until(lambda: len(c.router.discovery.deployments) == 1)
            await asyncio.sleep(0.05)
            assert await served_by() == {"young"}
        for replica in (old, young):
            await replica.kill()

    run(scenario())


def test_routing_of_a_manifest_is_that_of_its_model() -> None:
    prefix = {"prefixChars": 1024, "meanLoadPercent": 150, "recomputeWeight": 3.0, "inFlightTokens": 8.0}
    overload = {"queueSeconds": 2.5, "maxQueued": 7}
    chosen = {"strategy": "LeastLoad", "prefixHash": prefix, "overload": overload}
    expected = Routing(Weights(3.0, 8.0, 1.5), 3, prefer_cached=False, queue_s=2.5, max_queued=7)
    table = ModelTable((), Routing(home_block=9))
    table.set_deployments([deployment_of(llm("m", routing=chosen))])
    assert table.routing("m") == expected
    assert table.routing("other") == Routing(home_block=9)


def test_metrics_tell_pods_of_one_name_apart(run: Run) -> None:
    async def scenario() -> None:
        cluster = Cluster()
        for namespace in ("x", "y"):
            cluster.put(PODS, pod("a", namespace=namespace))
        async with routing(cluster, namespaces=("*",)) as c:
            await until(lambda: len(c.router.endpoints) == 2)
            lines = (await c.ask(get("/metrics"))).raw_body.decode().splitlines()
            counted = [line for line in lines if line.startswith("shoal_router_replica_requests_total{")]
            assert sorted(counted) == [
                f'shoal_router_replica_requests_total{{replica="{namespace}/a"}} 0' for namespace in "xy"
            ]

    run(scenario())
