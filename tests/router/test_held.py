"""Requests of a deployment that sleeps: they wait for its first replica."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.router.cluster import DEPLOYMENTS, PODS, Cluster, llm, pod
from tests.router.conftest import Run
from tests.router.scripted import Client, Replica, post, until
from tests.router.test_kubernetes_discovery import InCluster, routing


def sleeping(hold_s: float, max_queued: int) -> dict[str, Any]:
    cold = {"holdSeconds": hold_s, "maxQueued": max_queued}
    scaling = {"minReplicas": 0, "maxReplicas": 2}
    return llm("m", replicas=0, autoscaling=scaling, routing={"coldStart": cold})


def waiting(c: InCluster) -> int:
    return c.router.demand.of(("m",))[1]


def test_held_requests_go_on_when_a_replica_becomes_ready(run: Run) -> None:
    async def scenario() -> None:
        cluster, replica = Cluster(), Replica(ready=503)
        await replica.start()
        cluster.put(DEPLOYMENTS, sleeping(20, 2))
        async with routing(cluster) as c:
            held = [asyncio.ensure_future(c.ask(post())) for _ in range(2)]
            await until(lambda: waiting(c) == 2)
            assert (await c.ask(post())).code == "no_replica_ready", "the third finds no place"
            cluster.put(PODS, pod("a", port=replica.port))
            await until(lambda: c.states() == {"a": "absent"})
            assert waiting(c) == 2, "a replica that loads is none yet"
            replica.ready = 200
            answers = await asyncio.gather(*held)
            assert [(a.status, a.headers["x-shoal-replica"]) for a in answers] == [(200, "a")] * 2
            assert waiting(c) == 0
        await replica.kill()

    run(scenario())


def test_held_request_is_refused_when_its_time_is_over(run: Run) -> None:
    async def scenario() -> None:
        cluster = Cluster()
        cluster.put(DEPLOYMENTS, sleeping(0.2, 2))
        async with routing(cluster) as c:
            answer = await c.ask(post())
            assert (answer.status, answer.code) == (503, "no_replica_ready")
            assert "in time" in answer.json["error"]["message"]
            assert waiting(c) == 0

    run(scenario())


def test_client_that_leaves_gives_its_place_back(run: Run) -> None:
    async def scenario() -> None:
        cluster = Cluster()
        cluster.put(DEPLOYMENTS, sleeping(20, 1))
        async with routing(cluster) as c:
            client = await Client.connect(c.router.port)
            client.writer.write(post())
            await until(lambda: waiting(c) == 1)
            client.reset()
            await until(lambda: waiting(c) == 0)

    run(scenario())


def test_requests_of_a_deleted_deployment_wait_no_longer(run: Run) -> None:
    async def scenario() -> None:
        cluster = Cluster()
        cluster.put(DEPLOYMENTS, sleeping(20, 1))
        cluster.put(DEPLOYMENTS, llm("other"))
        async with routing(cluster) as c:
            held = asyncio.ensure_future(c.ask(post()))
            await until(lambda: waiting(c) == 1)
            cluster.remove(DEPLOYMENTS, "default/m")
            assert (await held).code == "model_not_found"

    run(scenario())
