"""Replicas in virtual time: no sockets, the same result every run. Who sends them requests is simulation.py's.

An engine here is a paged LRU cache of 16-token blocks, chunked prefill and continuous batching, with the costs of
routers.md section 2: 50 us per uncached token, a step of 8 ms + 0.05 ms per running sequence, 32 running at most.
It tags its blocks with the router's chain and pushes what it holds, as a Shoal engine does.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from shoal_api import engine_state_pb2 as pb

TOKEN_BYTES = 4
BLOCK_BYTES = 64
CHUNK_TOKENS = 2048
MAX_RUNNING = 32
STEP_S, TOKEN_S, SEQUENCE_S = 0.008, 0.00005, 0.00005
PUSH_S, DELAY_S = 0.1, 0.002  # how late an engine tells of a change, and how long that is under way


Watcher = Callable[[pb.Update], None]


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
    chain: Sequence[int] = ()  # of the router, whose hashes the engine tags its blocks with
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
        self.watchers: list[Watcher] = []
        self._tags: dict[int, list[int]] = {}  # block -> chain hashes that sit on it
        self._stored: dict[int, None] = {}  # since the last push
        self._evicted: dict[int, None] = {}
        self._pushing = False
        self._pushed_s = -PUSH_S

    def submit(self, job: Job) -> None:
        parent = 0
        job.blocks = []
        for end in range(BLOCK_BYTES, len(job.content) + 1, BLOCK_BYTES):
            parent = hash((parent, job.content[end - BLOCK_BYTES : end]))
            job.blocks.append(parent)
        job.tokens = max(1, len(job.content) // TOKEN_BYTES)
        self.waiting.append(job)
        self._changed()
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
        step_s = STEP_S + SEQUENCE_S * len(self.running) + TOKEN_S * (CHUNK_TOKENS - budget)
        self.world.at(self.world.now_s + step_s, self._emit)

    def _admit(self, job: Job) -> None:
        hits = next((i for i, block in enumerate(job.blocks) if block not in self.cache), len(job.blocks))
        job.cached = min(hits * 16, job.tokens - 1)
        job.to_prefill = job.tokens - job.cached
        for block in reversed(job.blocks):
            self.cache[block] = None
            self.cache.move_to_end(block)
        while len(self.cache) > self.cache_blocks:
            block, _ = self.cache.popitem(last=False)
            for tag in self._tags.pop(block, ()):
                self._stored.pop(tag, None)
                self._evicted[tag] = None
        self.running.append(job)

    def _tag(self, job: Job) -> None:
        """Its prompt is computed: the router's blocks end with every fourth of ours."""
        for tag, block in zip(job.chain, job.blocks[3::4], strict=False):
            if block in self.cache and tag not in self._tags.setdefault(block, []):
                self._tags[block].append(tag)
                self._evicted.pop(tag, None)
                self._stored[tag] = None

    def _changed(self) -> None:
        """Tell the watchers, at most ten times a second."""
        if self.watchers and not self._pushing:
            self._pushing = True
            self.world.at(max(self.world.now_s, self._pushed_s + PUSH_S), self._push)

    def _push(self) -> None:
        self._pushing = False
        self._pushed_s = self.world.now_s
        load = pb.Load(
            running=len(self.running),
            waiting=len(self.waiting),
            queued_prefill_tokens=sum(job.to_prefill for job in self.running)
            + sum(job.tokens for job in self.waiting),
            max_num_seqs=MAX_RUNNING,
            ready=True,
        )
        update = pb.Update(load=load, stored=self._stored, evicted=self._evicted)
        self._stored, self._evicted = {}, {}
        for watcher in self.watchers:
            self.world.at(self.world.now_s + DELAY_S, lambda w=watcher: w(update))  # type: ignore[misc]

    def _emit(self) -> None:
        for job in self.running:
            if job.to_prefill == 0:
                job.generated += 1
                if job.generated == 1:
                    self._tag(job)
                    job.first_token_s = self.world.now_s
                    job.first(job)
                if job.generated == job.output_tokens:
                    job.done(job)
        self.running = [job for job in self.running if job.generated < job.output_tokens]
        self._changed()
        self._step()
