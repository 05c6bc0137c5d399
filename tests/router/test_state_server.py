"""What a router tells the operator, heard by a real gRPC client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc

from shoal_api import router_state_pb2 as pb
from shoal_api import router_state_pb2_grpc as rpc
from shoal_router.state_server import StateServer
from tests.router.cluster import DEPLOYMENTS, PODS, Cluster, llm, pod
from tests.router.conftest import Run
from tests.router.scripted import (
    STREAM_BEGUN,
    Client,
    Received,
    Replica,
    chat,
    post,
    stream_until,
)
from tests.router.test_kubernetes_discovery import InCluster, drained, routing


@asynccontextmanager
async def observing(c: InCluster) -> AsyncIterator[list[pb.State]]:
    """All states that an observer hears, oldest first."""
    server = StateServer(c.router, "router-0", asyncio.get_running_loop().time)
    port = await server.start("127.0.0.1", 0)
    heard: list[pb.State] = []

    async def listen() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            async for state in rpc.RouterStateStub(channel).Observe(pb.ObserveRequest(observer="test")):
                heard.append(state)

    listening = asyncio.ensure_future(listen())
    try:
        yield heard
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await server.stop()


async def hear(heard: list[pb.State], wanted: Callable[[pb.State], bool]) -> pb.State:
    async with asyncio.timeout(5):
        while not (heard and wanted(heard[-1])):
            await asyncio.sleep(0.005)
    return heard[-1]


def standing(state: pb.State, name: str) -> int | None:
    return next((each.standing for each in state.endpoints if each.pod == name), None)


async def endless(request: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_BEGUN)
    await asyncio.Event().wait()


def test_standings_follow_the_pod_from_loading_to_cordon_and_its_end(run: Run) -> None:
    release = asyncio.Event()

    async def scenario() -> None:
        metrics = b"vllm:num_requests_running 3\nvllm:num_requests_waiting 2\nvllm:kv_cache_usage_perc 0.25\n"
        cluster, replica = Cluster(), Replica(script=stream_until(release), ready=503, metrics=metrics)
        await replica.start()
        cluster.put(DEPLOYMENTS, llm("m", engine={"maxNumSeqs": 7}))
        cluster.put(PODS, pod("a", port=replica.port))
        async with routing(cluster) as c, observing(c) as heard:
            loading = await hear(heard, lambda s: standing(s, "a") == pb.STANDING_NOT_READY)
            assert loading.router == "router-0"
            assert loading.synced
            assert loading.endpoints[0].report_age_s < 0
            replica.ready = 200
            told = (await hear(heard, lambda s: standing(s, "a") == pb.STANDING_ROUTABLE)).endpoints[0]
            assert (told.namespace, told.uid, told.max_num_seqs) == ("default", "uid-a", 7)
            assert (told.running, told.waiting, told.kv_usage, told.in_flight) == (3, 2, 0.25, 0)
            assert 0 <= told.report_age_s < 5
            replica.metrics = metrics + b"shoal:max_num_seqs 64\n"
            await hear(heard, lambda s: s.endpoints[0].max_num_seqs == 64)
            client = await Client.connect(c.router.port)
            client.writer.write(post(body=chat("hi", stream=True)))
            await client.head()
            await hear(heard, lambda s: s.endpoints[0].in_flight == 1)
            cluster.put(PODS, drained(pod("a", port=replica.port)))
            await hear(heard, lambda s: standing(s, "a") == pb.STANDING_CORDONED)
            cluster.remove(PODS, "default/a")
            await asyncio.sleep(0.3)
            assert heard[-1].endpoints[0].in_flight == 1, "a pod that left is told while it has requests"
            release.set()
            await hear(heard, lambda s: not s.endpoints)
            client.close()
            sequence = [state.sequence for state in heard]
            assert sequence == list(range(1, len(heard) + 1))
        await replica.kill()

    run(scenario())


def test_demand_counts_adapters_and_refused_requests(run: Run) -> None:
    async def scenario() -> None:
        cluster = Cluster()
        adapters = [{"name": "tuned", "uri": "file:///models/tuned"}]
        cluster.put(DEPLOYMENTS, llm("m", adapters=adapters))
        async with routing(cluster) as c, observing(c) as heard:
            assert (await hear(heard, lambda s: len(s.models) == 1)).models[0].arrivals == 0
            for model in ("m", "tuned", "unknown"):
                await c.ask(post(body={"model": model}))
            model = (await hear(heard, lambda s: s.models[0].arrivals == 2)).models[0]
            assert (model.namespace, model.deployment, model.held) == ("default", "m", 0)
            assert model.idle_s < 1

    run(scenario())


def test_states_are_few_under_load_and_still_come_when_nothing_happens(run: Run) -> None:
    async def scenario() -> None:
        cluster = Cluster()
        cluster.put(DEPLOYMENTS, llm("m"))
        loop = asyncio.get_running_loop()
        async with routing(cluster) as c, observing(c) as heard:
            await hear(heard, lambda s: True)
            start, first = loop.time(), len(heard)
            while loop.time() < start + 0.5:
                await c.ask(post())
            assert len(heard) - first <= 10 * (loop.time() - start) + 1
            await asyncio.sleep(0.15)
            quiet = heard[-1].sequence
            async with asyncio.timeout(2):
                while heard[-1].sequence == quiet:
                    await asyncio.sleep(0.01)
            assert heard[-1].models[0].idle_s > 1

    run(scenario())


def test_drain_is_told(run: Run) -> None:
    async def scenario() -> None:
        cluster, replica = Cluster(), Replica(script=endless)
        await replica.start()
        cluster.put(PODS, pod("a", port=replica.port))
        async with routing(cluster) as c, observing(c) as heard:
            await hear(heard, lambda s: standing(s, "a") == pb.STANDING_ROUTABLE)
            client = await Client.connect(c.router.port)
            client.writer.write(post(body=chat("hi", stream=True)))
            await client.head()
            stopping = asyncio.ensure_future(c.router.stop(0.5))
            ending = await hear(heard, lambda s: s.draining)
            assert ending.endpoints[0].in_flight == 1
            await stopping
            client.close()
        await replica.kill()

    run(scenario())
