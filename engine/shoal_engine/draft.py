"""Decide what one step computes, within its budget of tokens and blocks. Knows no results and no clock."""

from __future__ import annotations

from itertools import islice

from shoal_engine.admission import exhausted
from shoal_engine.limits import UNLIMITED, SchedulerLimits
from shoal_engine.messages import StepCost
from shoal_engine.plan import Chunk
from shoal_engine.queues import Queues
from shoal_engine.request import Request, Status
from shoal_engine.shared_prefixes import LEAST_PREFIX_TOKENS, family
from shoal_engine.tables import BlockTables


class Draft:
    """One step in the making. `fill` decides; the fields then say what was decided.

    Requests that lack one token go first, because somebody watches them type. What is left of the budget
    goes to running prompts, then to waiting ones, then once more to prompts that were held to a fair share.
    Prompt chunks end on block boundaries where they can: their blocks are published whole, and requests
    with the same prompt, planned in turn, each continue where the one before has got to instead of
    computing the same side by side.
    """

    def __init__(
        self,
        step: int,
        limits: SchedulerLimits,
        queues: Queues,
        tables: BlockTables,
        step_cost: StepCost | None = None,
    ) -> None:
        self.singles: list[Chunk] = []  # one token each, sampling
        self.chunks: list[Chunk] = []
        self.failed: list[Request] = []
        self.num_preemptions = 0
        self.prompt_tokens_left = 0  # of the running requests, behind this step
        self._step = step
        self._limits = limits
        self._queues = queues
        self._tables = tables
        self._step_cost = step_cost
        self._budget = limits.max_num_batched_tokens
        self._chunk_limit = UNLIMITED
        self._reserved = 0  # blocks that running prompts still need
        self._short = False  # somebody who runs got no block: nobody new may start
        self._decodes: list[Request] = []

    def fill(self) -> None:
        behind = self._collect_decodes()
        self._share_budget(behind)
        self._continue_prompts(behind)
        self._advance_decodes()
        started = [] if self._short else self._admit()
        self._top_up()
        self.prompt_tokens_left = sum(
            len(request.token_ids) - request.num_computed_tokens
            for request in (*behind, *started)
            if request.status is Status.RUNNING
        )

    def _collect_decodes(self) -> list[Request]:
        """Take the running requests that lack one token; returns those that lack more."""
        block_tokens, budget = self._tables.block_tokens, self._budget
        decodes, behind = self._decodes, []
        for request in self._queues.running:  # preemption shortens it at its end only
            start = request.num_computed_tokens
            pending = request.num_pending
            known = len(request.token_ids) + pending
            if known - start > 1:
                behind.append(request)
                continue
            if len(decodes) >= budget or (pending and known >= request.max_total_tokens):
                continue  # in the latter case its last token is in flight
            if start % block_tokens or self._make_room(request, start, start + 1):
                decodes.append(request)
        return behind

    def _share_budget(self, behind: list[Request]) -> None:
        limits = self._limits
        self._budget -= len(self._decodes)
        if self._decodes:
            self._budget = limits.guarded_budget(self._budget, len(self._decodes), self._step_cost)
        seats = 0 if self._short else max(0, limits.max_num_seqs - len(self._queues.running))
        known = [*behind, *islice(self._queues.waiting, seats)]
        remaining = [len(request.token_ids) - request.num_computed_tokens for request in known]
        share = limits.max_chunk_tokens(self._budget, remaining)
        self._chunk_limit = min(share, self._tables.max_chunk_tokens)

    def _continue_prompts(self, behind: list[Request]) -> None:
        for request in behind:
            if request.status is not Status.RUNNING:
                continue  # preempted meanwhile
            self._skip_cached(request)
            start = request.num_computed_tokens
            count = self._chunk_tokens(start, len(request.token_ids) - start)
            if count and self._make_room(request, start, start + count):
                self._take(request, count)
            if request.status is Status.RUNNING:
                self._reserved += self._tables.outstanding(request)

    def _skip_cached(self, request: Request) -> None:
        """Others may have computed what comes next since the request was admitted."""
        prefix = self._tables.find_more(request)
        if not prefix:
            return
        self._tables.adopt(request, prefix)
        first_time = not request.num_output_tokens and not request.stale_step
        if first_time:
            num_tokens = len(prefix) * self._tables.block_tokens
            request.num_cached_tokens = (request.num_cached_tokens or 0) + num_tokens
            self._tables.pool.hits += num_tokens

    def _advance_decodes(self) -> None:
        block_tokens, step, singles = self._tables.block_tokens, self._step, self.singles
        if any((request.num_cached_tokens or 0) >= LEAST_PREFIX_TOKENS for request in self._decodes):
            self._decodes.sort(key=lambda request: family(request.block_ids, block_tokens))
        for request in self._decodes:
            start = request.num_computed_tokens
            request.num_computed_tokens = end = start + 1
            request.num_pending += 1
            request.last_step = step
            singles.append(Chunk(request, start, 1, True))
            if not end % block_tokens:
                self._tables.publish(request)

    def _admit(self) -> list[Request]:
        """Start waiting requests in order, as long as the whole prompt of each fits; returns them."""
        queues, tables, pool = self._queues, self._tables, self._tables.pool
        started: list[Request] = []
        while queues.waiting and self._budget > 0 and len(queues.running) < self._limits.max_num_seqs:
            request = queues.waiting[0]
            needed = tables.blocks_to_hold(len(request.token_ids))
            if needed > pool.capacity:
                self._fail(request)  # it would block all behind it for ever
                continue
            if not pool.num_free:
                break
            prefix = tables.find_prefix(request)
            live = [block for block in prefix if block]
            idle = sum(not pool.references(block) for block in live)
            spare = int(self._limits.watermark * pool.capacity) if queues.running else 0
            if max(0, needed - len(live)) + idle + self._reserved + spare > pool.num_free:
                break
            self._start(request, prefix)
            started.append(request)
        return started

    def _start(self, request: Request, prefix: list[int]) -> None:
        tables = self._tables
        self._queues.start(request)
        tables.adopt(request, prefix)
        start = request.num_computed_tokens
        if request.num_cached_tokens is None:
            request.num_cached_tokens = min(start, request.num_prompt_tokens)
            counts = not (request.needs_prompt_logits or request.num_given_tokens)  # once in the fleet
            if tables.pool.enable_prefix_caching and counts:
                tables.pool.queries += request.num_prompt_tokens
                tables.pool.hits += start
        count = self._chunk_tokens(start, len(request.token_ids) - start)
        if not tables.grow(request, start, start + count):
            raise RuntimeError(f"{request!r} was admitted without room for its first chunk")
        self._take(request, count)
        self._reserved += tables.outstanding(request)

    def _top_up(self) -> None:
        """Budget that is left over goes to the prompts that were held to their share."""
        if self._limits.long_prefill_token_threshold or self._limits.sliding_window:
            return  # a limit somebody has set, or that the cache sets, holds even when it leaves room
        self._chunk_limit = UNLIMITED
        for index, chunk in enumerate(self.chunks):
            request, end = chunk.request, chunk.start + chunk.count
            if chunk.samples or self._tables.find_more(request):
                continue  # the next step finds those blocks computed
            rest = len(request.token_ids) - end
            more = self._chunk_tokens(end, rest)
            if more < min(rest, self._tables.block_tokens):
                continue  # not worth leaving the block boundary for
            if self._tables.grow(request, chunk.start, end + more):
                samples = self._advance(request, more)
                self.chunks[index] = Chunk(request, chunk.start, chunk.count + more, samples)

    def _chunk_tokens(self, start: int, rest: int) -> int:
        """How many of `rest` tokens from `start` on to compute now: all, or up to a block boundary."""
        count = min(rest, self._chunk_limit, self._budget)
        if self._tables.block_tokens <= count < rest:
            count -= (start + count) % self._tables.block_tokens
        return count

    def _take(self, request: Request, count: int) -> None:
        start = request.num_computed_tokens
        samples = self._advance(request, count)
        chunks = self.singles if samples and count == 1 else self.chunks
        chunks.append(Chunk(request, start, count, samples))

    def _advance(self, request: Request, count: int) -> bool:
        """Count prompt tokens as computed and publish their blocks; True if the next is to be sampled."""
        request.num_computed_tokens += count
        request.last_step = self._step
        self._budget -= count
        self._tables.publish(request)
        samples = request.num_computed_tokens == len(request.token_ids)
        request.num_pending += samples
        return samples

    def _make_room(self, request: Request, start: int, end: int) -> bool:
        """Grow the request's table, if need be at the cost of those behind it; False if it cannot run now."""
        tables, running = self._tables, self._queues.running
        while not tables.grow(request, start, end):
            self._short = True
            if tables.pool.num_free + tables.num_fenced >= tables.missing(request, end):
                return False  # enough comes free with the steps in flight
            victim = running[-1]
            if victim is not request:
                self._preempt(victim)
                continue
            if len(running) > 1:
                self._preempt(request)
            elif not tables.in_flight(request):  # what is in flight may be its last token
                self._fail(request)
            return False
        return True

    def _preempt(self, victim: Request) -> None:
        if self._decodes and self._decodes[-1] is victim:
            self._decodes.pop()  # both lists have one order, so whoever is last in one is last in the other
            self._budget += 1
        victim.num_preemptions += 1
        self.num_preemptions += 1
        self._queues.requeue(victim)

    def _fail(self, request: Request) -> None:
        capacity = self._tables.pool.capacity * self._tables.block_tokens
        self._queues.end(request, "error", exhausted(len(request.token_ids), capacity))
        self.failed.append(request)
