"""Requests that find every replica full: they wait in the router, in order, and are refused in time."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

from shoal_router.routing import Routing
from tests.router.cluster import DEPLOYMENTS, PODS, Cluster, llm, pod
from tests.router.conftest import Run
from tests.router.scripted import (
    FAST,
    Client,
    Received,
    Replica,
    Rig,
    chat,
    get,
    not_started,
    post,
    reply,
    rig,
    until,
)
from tests.router.test_kubernetes_discovery import routing

TAKES_TWO = b"shoal:max_num_seqs 1\nshoal:max_requests 2\n"


class Slow(Replica):
    """Answers when `open` is set, one request per `release`; remembers in which order they came."""

    def __init__(self, metrics: bytes = TAKES_TWO) -> None:
        super().__init__(script=self.answer, metrics=metrics)
        self.ends = asyncio.Semaphore(0)
        self.most = self.running = 0

    @property
    def asked(self) -> list[str]:
        return [json.loads(request.body)["messages"][0]["content"] for request in self.requests]

    async def answer(self, request: Received, writer: asyncio.StreamWriter) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        await self.ends.acquire()
        self.running -= 1
        writer.write(reply(b"{}"))

    def release(self, count: int = 1) -> None:
        for _ in range(count):
            self.ends.release()


def held(r: Rig) -> int:
    return r.router.demand.of(("m",))[1]


async def asking(r: Rig, number: int) -> asyncio.Task[int]:
    """Ask and return the status; later calls come later."""
    client = await r.connect()
    client.writer.write(post(body=chat(str(number))))

    async def status() -> int:
        answer = await client.answer()
        client.close()
        return answer.status

    before = len(r.router._proxy.active)
    await until(lambda: len(r.router._proxy.active) > before)
    return asyncio.ensure_future(status())


async def known(r: Rig) -> None:
    await until(lambda: all(e.report.max_requests for e in r.router.endpoints))


def test_what_a_full_replica_cannot_take_waits_its_turn_in_the_router(run: Run) -> None:
    async def scenario() -> None:
        slow = Slow()
        async with rig(slow) as r:
            await known(r)
            tasks = [await asking(r, i) for i in range(7)]
            await until(lambda: len(slow.requests) == 2)
            assert held(r) == 5
            assert b'shoal_router_held_requests{model="m"} 5' in (await r.ask(get("/metrics"))).raw_body
            for left in (4, 3, 2):
                slow.release()
                await until(lambda left=left: held(r) == left)
            tasks += [await asking(r, 7)]
            assert held(r) == 3
            for count in (6, 7, 8):  # one at a time: two at once might overtake one another on their way
                slow.release()
                await until(lambda count=count: len(slow.requests) == count)
            slow.release(2)
            assert [await task for task in tasks] == [200] * 8
            assert slow.asked == [str(i) for i in range(8)], "first come, first served"
            assert slow.most == 2
            assert held(r) == 0

    run(scenario())


def test_router_that_ends_serves_what_waits_for_room_in_it(run: Run) -> None:
    """And what comes to it while clients still do; found by e2e/router_restart."""

    async def scenario() -> None:
        slow = Slow()
        async with rig(slow, settings=replace(FAST, drain_delay_s=0.2)) as r:
            await known(r)
            tasks = [await asking(r, i) for i in range(4)]
            await until(lambda: held(r) == 2)
            stopping = asyncio.ensure_future(r.router.stop(5.0))
            await until(lambda: r.router._listener.draining)
            tasks.append(await asking(r, 4))
            assert held(r) == 3
            await until(lambda: r.router.draining)
            slow.release(5)
            assert [await task for task in tasks] == [200] * 5
            assert await stopping

    run(scenario())


def test_request_that_waits_too_long_or_finds_too_many_waiting_gets_429(run: Run) -> None:
    async def scenario() -> None:
        slow = Slow()
        settings = replace(FAST, routing=Routing(queue_s=1.5, max_queued=1))
        async with rig(slow, settings=settings) as r:
            await known(r)
            running = [await asking(r, i) for i in range(2)]
            late = asyncio.ensure_future(r.ask(post()))
            await until(lambda: held(r) == 1)
            crowded = await r.ask(post())
            assert not late.done()
            for answer in (crowded, await late):
                assert (answer.status, answer.code) == (429, "queue_full")
                assert answer.headers["retry-after"] == "2"
            assert len(slow.requests) == 2
            slow.release(2)
            assert [await each for each in running] == [200] * 2
            assert [e.tally.faults for e in r.router.endpoints] == [0]

    run(scenario())


def test_replica_with_room_is_used_although_another_holds_the_prompt(run: Run) -> None:
    async def scenario() -> None:
        slow, other = Slow(), Slow()
        async with rig(slow, other) as r:
            await known(r)
            tasks = []
            for _ in range(4):  # one prompt: the same replica would be the cheapest each time
                client = await r.connect()
                client.writer.write(post(body=chat("x" * 5000)))
                tasks.append(asyncio.ensure_future(client.answer()))
            await until(lambda: len(slow.requests) + len(other.requests) == 4)
            assert (slow.most, other.most) == (2, 2)
            assert held(r) == 0
            slow.release(2)
            other.release(2)
            assert [(await each).status for each in tasks] == [200] * 4

    run(scenario())


def test_engine_that_says_429_is_no_fault_and_its_request_goes_elsewhere_or_waits(run: Run) -> None:
    full = True

    async def moody(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(not_started(429, "queue_full") if full else reply(b"{}"))

    async def scenario() -> None:
        nonlocal full
        first, second = Replica(script=moody), Replica()
        async with rig(first, second) as r:
            for _ in range(6):
                answer = await r.ask(post())
                assert (answer.status, answer.headers["x-shoal-replica"]) == (200, second.url)
            second.script = moody
            waiting = asyncio.ensure_future(r.ask(post()))
            await until(lambda: held(r) == 1)
            await asyncio.sleep(0.1)
            assert not waiting.done()
            full = False
            assert (await waiting).status == 200
            assert [e.tally.faults for e in r.router.endpoints] == [0, 0]
            await r.state("healthy", "healthy")

    run(scenario())


def test_seat_that_another_routers_request_leaves_is_taken_when_the_replica_tells_of_it(run: Run) -> None:
    async def scenario() -> None:
        taken = Replica(metrics=TAKES_TWO + b"vllm:num_requests_running 2\n")
        async with rig(taken, settings=replace(FAST, sweep_s=60.0)) as r:
            await until(lambda: all(e.elsewhere == 2 for e in r.router.endpoints))
            waiting = asyncio.ensure_future(r.ask(post()))
            await until(lambda: held(r) == 1)
            taken.metrics = TAKES_TWO
            assert (await waiting).status == 200

    run(scenario())


def test_counting_tokens_needs_no_seat(run: Run) -> None:
    async def scenario() -> None:
        slow = Slow()
        async with rig(slow) as r:
            await known(r)
            tasks = [await asking(r, i) for i in range(3)]
            await until(lambda: held(r) == 1)
            tokens = asyncio.ensure_future(r.ask(post("/tokenize", {"model": "m", "prompt": "x"})))
            await until(lambda: len(slow.requests) == 3)
            assert held(r) == 1
            slow.release(4)
            assert (await tokens).status == 200
            assert [await each for each in tasks] == [200] * 3

    run(scenario())


def test_client_that_leaves_the_queue_lets_the_next_one_move_up(run: Run) -> None:
    async def scenario() -> None:
        slow = Slow()
        async with rig(slow) as r:
            await known(r)
            running = [await asking(r, i) for i in range(2)]
            leaving = await r.connect()
            leaving.writer.write(post())
            await until(lambda: held(r) == 1)
            last = await asking(r, 2)
            leaving.reset()
            await until(lambda: held(r) == 1)
            slow.release(3)
            assert [await each for each in [*running, last]] == [200] * 3
            assert set(slow.asked) == {"0", "1", "2"}

    run(scenario())


def test_more_sleepers_than_the_first_replica_takes_are_all_served(run: Run) -> None:
    async def scenario() -> None:
        cluster, slow = Cluster(), Slow()
        await slow.start()
        slow.ready = 503
        options = {"coldStart": {"holdSeconds": 20}, "overload": {"queueSeconds": 0.05}}
        scaling = {"minReplicas": 0, "maxReplicas": 2}
        cluster.put(DEPLOYMENTS, llm("m", replicas=0, autoscaling=scaling, routing=options))
        async with routing(cluster) as c:
            sleepers = [asyncio.ensure_future(c.ask(post())) for _ in range(20)]
            await until(lambda: c.router.demand.of(("m",))[1] == 20)
            cluster.put(PODS, pod("a", port=slow.port))
            slow.ready = 200
            await until(lambda: len(slow.requests) == 2)
            await asyncio.sleep(0.2)
            slow.release(20)
            assert [(await each).status for each in sleepers] == [200] * 20
            assert slow.most == 2
        await slow.kill()

    run(scenario())


def test_each_deployment_has_its_own_patience(run: Run) -> None:
    async def scenario() -> None:
        cluster, slow, other = Cluster(), Slow(), Slow()
        other.models = ("n",)
        for replica in (slow, other):
            await replica.start()
        cluster.put(DEPLOYMENTS, llm("m", routing={"overload": {"queueSeconds": 0}}))
        cluster.put(DEPLOYMENTS, llm("n", routing={"overload": {"queueSeconds": 20, "maxQueued": 1}}))
        cluster.put(PODS, pod("a", port=slow.port))
        named = pod("b", port=other.port)
        named["metadata"]["labels"]["serving.shoal.dev/deployment"] = "n"
        cluster.put(PODS, named)
        async with routing(cluster) as c:
            await until(lambda: all(e.report.max_requests for e in c.router.endpoints))
            await until(lambda: c.states() == {"a": "healthy", "b": "healthy"})
            clients = [await Client.connect(c.router.port) for _ in range(4)]
            for i, client in enumerate(clients):
                client.writer.write(post(body={"model": "mn"[i % 2]}))
            await until(lambda: len(slow.requests) == len(other.requests) == 2)
            assert (await c.ask(post(body={"model": "m"}))).status == 429
            waiting = asyncio.ensure_future(c.ask(post(body={"model": "n"})))
            await until(lambda: c.router.demand.of(("n",))[1] == 1)
            assert (await c.ask(post(body={"model": "n"}))).status == 429
            slow.release(2)
            other.release(3)
            assert (await waiting).status == 200
            for client in clients:
                assert (await client.answer()).status == 200
                client.close()
        for replica in (slow, other):
            await replica.kill()

    run(scenario())
