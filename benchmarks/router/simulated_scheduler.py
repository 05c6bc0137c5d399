"""A simulated engine's scheduler: chunked prefill and continuous batching over a paged LRU cache. No sockets.

Costs are those of routers.md section 2: 50 us for an uncached prompt token, 8 ms for a step and 0.05 ms for each sequence
in it, 2,048 prompt tokens a step, 32 sequences at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from simulated_cache import BLOCK_TOKENS, TOKEN_BYTES, PagedCache, block_hashes, read_chain


@dataclass(frozen=True, slots=True)
class Speed:
    """What a step costs, in seconds. `instant` engines answer at once, to measure routers alone."""

    instant: bool = False
    pace_s: float = 0.0  # of an instant engine's stream, from chunk to chunk; 0 sends all at once
    step_s: float = 0.008
    step_per_sequence_s: float = 0.00005
    prefill_per_token_s: float = 0.00005
    chunk_tokens: int = 2048
    max_running: int = 32
    cache_blocks: int = 2048


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside the engine; `emit` is called for each token, the last time with `generated == max_tokens`."""

    content: bytes
    chain: bytes
    max_tokens: int
    emit: Callable[[Sequence], None]
    blocks: list[int]
    prompt_tokens: int = 0
    cached_tokens: int = 0
    left_to_prefill: int = 0
    generated: int = 0
    gone: bool = False


class Engine:
    """One replica's cache and scheduler."""

    def __init__(self, speed: Speed, grpc_port: int = 0) -> None:
        self.speed = speed
        self.grpc_port = grpc_port
        self.cache = PagedCache(speed.cache_blocks)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.prompt_tokens = self.cached_tokens = self.requests = 0
        self._seen: set[bytes] = set()  # prompts of an instant engine: it looks up and stores each once
        self.state: object = None  # whoever tells others of it
        self._work = asyncio.Event()
        self.task = None if speed.instant else asyncio.get_running_loop().create_task(self._run())

    def submit(self, sequence: Sequence) -> None:
        self.requests += 1
        sequence.prompt_tokens = max(1, len(sequence.content) // TOKEN_BYTES)
        if not self.speed.instant:
            sequence.blocks = block_hashes(sequence.content)
            self.waiting.append(sequence)
            self._work.set()
            return
        if sequence.content not in self._seen:
            self._seen.add(sequence.content)
            sequence.blocks = block_hashes(sequence.content)
            self._look_up(sequence)
        if self.speed.pace_s and sequence.max_tokens > 1:
            asyncio.get_running_loop().call_later(self.speed.pace_s, self._paced, sequence)
        else:
            sequence.generated = sequence.max_tokens
            sequence.emit(sequence)

    def _paced(self, sequence: Sequence) -> None:
        sequence.generated += 1
        sequence.emit(sequence)
        if sequence.generated < sequence.max_tokens and not sequence.gone:
            asyncio.get_running_loop().call_later(self.speed.pace_s, self._paced, sequence)

    async def _run(self) -> None:
        speed = self.speed
        while True:
            if not self.waiting and not self.running:
                self._work.clear()
                await self._work.wait()
            while self.waiting and len(self.running) < speed.max_running:
                self._admit(self.waiting.popleft())
            budget = speed.chunk_tokens
            for sequence in self.running:
                chunk = min(budget, sequence.left_to_prefill)
                sequence.left_to_prefill -= chunk
                budget -= chunk
            prefilled = speed.chunk_tokens - budget
            step_s = speed.step_s + len(self.running) * speed.step_per_sequence_s
            await asyncio.sleep(step_s + prefilled * speed.prefill_per_token_s)
            for sequence in self.running:
                if sequence.left_to_prefill == 0 and not sequence.gone:
                    sequence.generated += 1
                    sequence.emit(sequence)
            self.running = [s for s in self.running if s.generated < s.max_tokens and not s.gone]

    def _admit(self, sequence: Sequence) -> None:
        self._look_up(sequence)
        sequence.left_to_prefill = sequence.prompt_tokens - sequence.cached_tokens
        self.prompt_tokens += sequence.prompt_tokens
        self.cached_tokens += sequence.cached_tokens
        self.running.append(sequence)

    def _look_up(self, sequence: Sequence) -> None:
        blocks, tokens = sequence.blocks, sequence.prompt_tokens
        # The last token is always computed: its logits are what the answer begins with.
        hits = min(self.cache.use(blocks), (tokens - 1) // BLOCK_TOKENS)
        if sequence.chain:
            self.cache.tag(blocks, tokens, *read_chain(sequence.chain))
        sequence.cached_tokens = hits * BLOCK_TOKENS

    @property
    def queued_prefill_tokens(self) -> int:
        queued = sum(sequence.prompt_tokens for sequence in self.waiting)
        return queued + sum(sequence.left_to_prefill for sequence in self.running)

    @property
    def kv_usage(self) -> float:
        """Share of the blocks that running sequences need; cached ones nobody uses are free."""
        used = set().union(*(sequence.blocks for sequence in self.running))
        return min(1.0, len(used) / self.speed.cache_blocks)
