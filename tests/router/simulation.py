"""Clients in virtual time around the router's own placement code, in front of simulated engines."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from shoal_api import engine_state_pb2 as pb
from shoal_api.request_prefix import hash_request, request_chain_start
from shoal_router.discovery import Address
from shoal_router.endpoints import Endpoint, Report
from shoal_router.engine_updates import report_of
from shoal_router.errors import ReplicasFull
from shoal_router.models import ModelTable
from shoal_router.placement import Placement
from shoal_router.placer import Placer
from shoal_router.pool import Pool
from shoal_router.prefix_index import PrefixIndex
from shoal_router.prices import LearnedPrices
from shoal_router.prompt import Prompt, Work
from shoal_router.routing import Routing
from shoal_router.standing import HEALTHY
from shoal_router.usage import BytesPerToken, Usage
from tests.router.simulated_engines import (
    BLOCK_BYTES,
    MAX_RUNNING,
    SEQUENCE_S,
    STEP_S,
    TOKEN_BYTES,
    TOKEN_S,
    Engine,
    Job,
    World,
)

OUTPUT_TOKENS = 64

Send = Callable[[bytes, int, Callable[[Job], None]], None]


class RouterUnderTest:
    """The router's index, policy and accounts in front of engines."""

    def __init__(
        self, world: World, engines: list[Engine], seed: int, routing: Routing, *, pushed: bool
    ) -> None:
        self.world = world
        self.engines = engines
        self.index = PrefixIndex()
        self.held: deque[tuple[Job, Prompt, Callable[[Job], None]]] = deque()
        self.endpoints = []
        for slot, engine in enumerate(engines):
            address = Address(f"http://10.0.0.{slot}:8000", "127.0.0.1", 1)
            report = Report((("m", b"{}"),), max_num_seqs=MAX_RUNNING)
            self.endpoints.append(
                Endpoint(address, slot, Pool(address, 1.0), standing=HEALTHY, report=report)
            )
            self.index.add(slot, engine.cache_blocks * BLOCK_BYTES // 256)
            if pushed:
                self.index.report(slot)
                engine.watchers.append(lambda update, e=self.endpoints[-1]: self._heard(e, update))  # type: ignore[misc]
        pick, prices = random.Random(seed).randrange, LearnedPrices()
        if pushed:
            cost = pb.StepCost(base_s=STEP_S, prefill_token_s=TOKEN_S, sequence_s=SEQUENCE_S)
            prices.learn(self.endpoints[0], cost)
        self.placer = Placer(ModelTable(self.endpoints, routing), self.index, BytesPerToken(), prices, pick)

    def _heard(self, endpoint: Endpoint, update: pb.Update) -> None:
        reported = self.index.report(endpoint.slot)
        reported.evict(update.evicted)
        reported.store(update.stored)
        reported.updated()
        queued = update.load.queued_prefill_tokens
        endpoint.take(report_of(update.load, endpoint.report), endpoint.in_flight, queued)
        self._go_on()

    def send(self, content: bytes, output_tokens: int, done: Callable[[Job], None]) -> None:
        chain = hash_request(content, request_chain_start("m"))
        prompt = Prompt("m", True, Work.GENERATE, len(content), chain)
        job = Job(content, output_tokens, self.world.now_s, lambda j: None, lambda j: None, chain=chain)
        self.held.append((job, prompt, done))
        self._go_on()

    def _go_on(self) -> None:
        """First come, first served, while there is room."""
        while self.held:
            job, prompt, done = self.held[0]
            try:
                placement = self.placer.place(prompt, ())
            except ReplicasFull:
                return
            self.held.popleft()
            job.first = lambda j, placement=placement: placement.first_byte()  # type: ignore[misc]
            job.done = lambda j, p=placement, q=prompt, d=done: self._done(j, p, q, d)  # type: ignore[misc]
            self.engines[placement.endpoint.slot].submit(job)

    def _done(self, job: Job, placement: Placement, prompt: Prompt, done: Callable[[Job], None]) -> None:
        self.placer.settle(placement, prompt, Usage(job.tokens, job.cached))
        placement.end()
        done(job)
        self._go_on()


@dataclass(slots=True)
class Result:
    """What a workload got, its first seconds left out."""

    hit_rate: float
    p50_ms: float
    p99_ms: float
    requests: int


def summary(jobs: list[Job], from_s: float) -> Result:
    late = [job for job in jobs if job.arrived_s >= from_s]
    waits = sorted(1000 * (job.first_token_s - job.arrived_s) for job in late)
    hits = sum(job.cached for job in late) / sum(job.tokens for job in late)
    return Result(hits, waits[len(waits) // 2], waits[int(len(waits) * 0.99)], len(late))


Workload = Callable[[random.Random, float], Iterator[tuple[float, bytes, int]]]


def zipf_prompts(prompts: int, exponent: float, rate: float, tokens: int = 2048) -> Workload:
    """Prompts that share one of some beginnings, with different endings."""

    def workload(rng: random.Random, seconds: float) -> Iterator[tuple[float, bytes, int]]:
        heads = [rng.randbytes(tokens * TOKEN_BYTES // 2).hex().encode() for _ in range(prompts)]
        weights = [1 / (i + 1) ** exponent for i in range(prompts)]
        when, number = 0.0, 0
        while when < seconds:
            yield when, rng.choices(heads, weights)[0] + f" question {number:06}".encode() * 3, OUTPUT_TOKENS
            when += rng.expovariate(rate)
            number += 1

    return workload


def unique_prompts(rate: float, tokens: int = 768) -> Workload:
    def workload(rng: random.Random, seconds: float) -> Iterator[tuple[float, bytes, int]]:
        when = 0.0
        while when < seconds:
            yield when, rng.randbytes(tokens * TOKEN_BYTES // 2).hex().encode(), OUTPUT_TOKENS
            when += rng.expovariate(rate)

    return workload


def play(
    workload: Workload,
    send: Callable[[World, list[Engine]], Send],
    *,
    replicas: int = 4,
    cache_blocks: int = 2048,
    seconds: float = 20.0,
    seed: int = 7,
) -> Result:
    """Run a workload against fresh engines; `send` decides where requests go."""
    world = World()
    engines = [Engine(world, cache_blocks) for _ in range(replicas)]
    route = send(world, engines)
    jobs: list[Job] = []
    for when, content, output_tokens in workload(random.Random(seed), seconds):
        world.at(when, lambda c=content, o=output_tokens: route(c, o, jobs.append))  # type: ignore[misc]
    world.run()
    return summary(jobs, seconds / 4)


def play_chat(
    send: Callable[[World, list[Engine]], Send],
    *,
    sessions: int,
    turns: int,
    replicas: int = 4,
    cache_blocks: int = 4096,
    seconds: float = 20.0,
    seed: int = 7,
) -> Result:
    """Conversations that each send their next turn some seconds after the last answer."""
    world = World()
    engines = [Engine(world, cache_blocks) for _ in range(replicas)]
    route = send(world, engines)
    rng = random.Random(seed)
    system = rng.randbytes(500).hex().encode()
    jobs: list[Job] = []

    def turn(history: bytes, left: int) -> None:
        content = history + rng.randbytes(rng.randint(100, 400)).hex().encode()

        def done(job: Job) -> None:
            jobs.append(job)
            if left > 1:
                answer = rng.randbytes(job.output_tokens * 2).hex().encode()
                world.at(world.now_s + rng.expovariate(0.5), lambda: turn(content + answer, left - 1))

        route(content, rng.randint(16, 96), done)

    for _ in range(sessions):
        world.at(rng.uniform(0, seconds), lambda: turn(system, turns))
    world.run()
    return summary(jobs, seconds / 4)


def by_router(
    routing: Routing | None = None, routers: int = 1, seed: int = 0, *, pushed: bool = True
) -> Callable[[World, list[Engine]], Send]:
    """Through one or several of our routers side by side, taken in turn; engines push their state or do not."""

    def make(world: World, engines: list[Engine]) -> Send:
        made = [
            RouterUnderTest(world, engines, seed + i, routing or Routing(), pushed=pushed)
            for i in range(routers)
        ]
        turn = count()
        return lambda content, tokens, done: made[next(turn) % routers].send(content, tokens, done)

    return make


def by_client(pick: Callable[[int, int], int]) -> Callable[[World, list[Engine]], Send]:
    """Straight to the engine that `pick(request number, replicas)` names."""

    def make(world: World, engines: list[Engine]) -> Send:
        number = count()

        def send(content: bytes, output_tokens: int, done: Callable[[Job], None]) -> None:
            job = Job(content, output_tokens, world.now_s, done, lambda j: None)
            engines[pick(next(number), len(engines))].submit(job)

        return send

    return make
