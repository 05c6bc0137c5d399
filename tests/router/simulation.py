"""Replicas and clients in virtual time around the router's own placement code: no sockets, the same result every run.

An engine here is a paged LRU cache of 16-token blocks, chunked prefill and continuous batching, with the costs of
routers.md section 2: 50 us per uncached token, a step of 8 ms + 0.05 ms per running sequence, 32 running at most.
"""

from __future__ import annotations

import heapq
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from shoal_api.request_prefix import hash_request, request_chain_start
from shoal_router.discovery import Address
from shoal_router.endpoints import Endpoint, Report
from shoal_router.models import ModelTable
from shoal_router.placement import Placement, Placer
from shoal_router.pool import Pool
from shoal_router.prefix_index import PrefixIndex
from shoal_router.prices import LearnedPrices
from shoal_router.prompt import Prompt, Work
from shoal_router.routing import Routing
from shoal_router.standing import HEALTHY
from shoal_router.usage import BytesPerToken, Usage

TOKEN_BYTES = 4
BLOCK_BYTES = 64
CHUNK_TOKENS = 2048
MAX_RUNNING = 32
OUTPUT_TOKENS = 64


@dataclass(slots=True, eq=False)
class Job:
    """One request from arrival to its last token."""

    content: bytes
    output_tokens: int
    arrived_s: float
    done: Callable[[Job], None]
    first: Callable[[Job], None]
    blocks: list[int] = field(default_factory=list)
    tokens: int = 0
    cached: int = 0
    to_prefill: int = 0
    generated: int = 0
    first_token_s: float = 0.0


class World:
    """The clock and what is going to happen."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), what))

    def run(self) -> None:
        while self._events:
            self.now_s, _, what = heapq.heappop(self._events)
            what()


class Engine:
    """One replica."""

    def __init__(self, world: World, cache_blocks: int) -> None:
        self.world = world
        self.cache: OrderedDict[int, None] = OrderedDict()
        self.cache_blocks = cache_blocks
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.stepping = False

    def submit(self, job: Job) -> None:
        parent = 0
        job.blocks = []
        for end in range(BLOCK_BYTES, len(job.content) + 1, BLOCK_BYTES):
            parent = hash((parent, job.content[end - BLOCK_BYTES : end]))
            job.blocks.append(parent)
        job.tokens = max(1, len(job.content) // TOKEN_BYTES)
        self.waiting.append(job)
        if not self.stepping:
            self.stepping = True
            self._step()

    def _step(self) -> None:
        while self.waiting and len(self.running) < MAX_RUNNING:
            self._admit(self.waiting.popleft())
        if not self.running:
            self.stepping = False
            return
        budget = CHUNK_TOKENS
        for job in self.running:
            part = min(budget, job.to_prefill)
            job.to_prefill -= part
            budget -= part
        step_s = 0.008 + 0.00005 * (len(self.running) + CHUNK_TOKENS - budget)
        self.world.at(self.world.now_s + step_s, self._emit)

    def _admit(self, job: Job) -> None:
        hits = next((i for i, block in enumerate(job.blocks) if block not in self.cache), len(job.blocks))
        job.cached = min(hits * 16, job.tokens - 1)
        job.to_prefill = job.tokens - job.cached
        for block in reversed(job.blocks):
            self.cache[block] = None
            self.cache.move_to_end(block)
        while len(self.cache) > self.cache_blocks:
            self.cache.popitem(last=False)
        self.running.append(job)

    def _emit(self) -> None:
        for job in self.running:
            if job.to_prefill == 0:
                job.generated += 1
                if job.generated == 1:
                    job.first_token_s = self.world.now_s
                    job.first(job)
                if job.generated == job.output_tokens:
                    job.done(job)
        self.running = [job for job in self.running if job.generated < job.output_tokens]
        self._step()


Send = Callable[[bytes, int, Callable[[Job], None]], None]


class RouterUnderTest:
    """The router's index, policy and accounts in front of engines."""

    def __init__(self, world: World, engines: list[Engine], seed: int, routing: Routing) -> None:
        self.world = world
        self.engines = engines
        self.index = PrefixIndex()
        self.endpoints = []
        for slot, engine in enumerate(engines):
            address = Address(f"http://10.0.0.{slot}:8000", "127.0.0.1", 1)
            report = Report((("m", b"{}"),))
            self.endpoints.append(
                Endpoint(address, slot, Pool(address, 1.0), standing=HEALTHY, report=report)
            )
            self.index.add(slot, engine.cache_blocks * BLOCK_BYTES // 256)
        pick = random.Random(seed).randrange
        self.placer = Placer(
            ModelTable(self.endpoints, routing), self.index, BytesPerToken(), LearnedPrices(), pick
        )

    def send(self, content: bytes, output_tokens: int, done: Callable[[Job], None]) -> None:
        chain = hash_request(content, request_chain_start("m"))
        prompt = Prompt("m", True, Work.GENERATE, len(content), chain)
        placement = self.placer.place(prompt, ())
        job = Job(content, output_tokens, self.world.now_s, lambda j: None, lambda j: None)
        job.first = lambda j: placement.endpoint.first_byte(placement.uncached_tokens, placement.stamp)
        job.done = lambda j: self._done(j, placement, prompt, done)
        self.engines[placement.endpoint.slot].submit(job)

    def _done(self, job: Job, placement: Placement, prompt: Prompt, done: Callable[[Job], None]) -> None:
        self.placer.settle(placement, prompt, Usage(job.tokens, job.cached))
        placement.endpoint.discharge(placement.uncached_tokens, placement.stamp)
        done(job)


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
    routing: Routing | None = None, routers: int = 1, seed: int = 0
) -> Callable[[World, list[Engine]], Send]:
    """Through one or several of our routers side by side, taken in turn."""

    def make(world: World, engines: list[Engine]) -> Send:
        made = [RouterUnderTest(world, engines, seed + i, routing or Routing()) for i in range(routers)]
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
