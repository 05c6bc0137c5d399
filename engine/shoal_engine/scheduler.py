"""Take requests in, plan steps, apply their results. Knows nothing of tensors or sockets."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from shoal_engine.admission import check_length, check_queue, exhausted
from shoal_engine.blocks import BlockPool
from shoal_engine.containment import contain, roll_back
from shoal_engine.draft import Draft
from shoal_engine.errors import EngineError, InvalidRequest
from shoal_engine.limits import SchedulerLimits
from shoal_engine.messages import Stats
from shoal_engine.plan import Chunk, Committed, Plan
from shoal_engine.queues import Queues
from shoal_engine.request import Request
from shoal_engine.tables import BlockTables
from shoal_engine.throughput import StepTimes

__all__ = ["BlockPool", "Chunk", "Committed", "Plan", "Scheduler", "SchedulerLimits"]


class Scheduler:
    """schedule -> run -> commit, or fail if the step did not run to its end. Plans are settled in order,
    once.

    `num_computed_tokens` advances and full blocks are published when a step is planned: a layer writes all
    keys and values of a step before any query reads them, so requests of one step can share blocks. The
    next step may be planned before the last is committed; its input is then a token that only the device
    knows yet. A request that ends or is preempted meanwhile turns its results in flight stale: they are
    ignored, and its blocks stay out of the pool until the steps that use them have been settled.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        pool: BlockPool,
        *,
        eos_token_ids: Collection[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits  # may be replaced between steps: fewer max_num_batched_tokens, max_num_seqs
        self.pool = pool
        self._eos = frozenset(eos_token_ids)
        self._clock = clock
        self._tables = BlockTables(pool, limits)
        self._queues = Queues(self._tables, limits.ageing_steps)
        self._times = StepTimes()
        self._step = 0
        self._crowded = False  # the last plan left requests waiting
        self._num_preemptions = 0
        self._prompt_tokens_left = 0  # of the running requests, after the last plan
        self._prompt_tokens = 0
        self._generation_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._queues.requests) or self._tables.oldest_flight is not None

    @property
    def num_running(self) -> int:
        return len(self._queues.running)

    @property
    def num_waiting(self) -> int:
        return len(self._queues.waiting)

    def get(self, request_id: str) -> Request | None:
        """The request if it has not ended."""
        return self._queues.requests.get(request_id)

    def add(self, request: Request) -> None:
        """Queue it. Raises InvalidRequest, ContextTooLong, KVCacheExhausted or QueueFull."""
        queues, limits, num_prompt = self._queues, self.limits, request.num_prompt_tokens
        check_length(request, limits.max_model_len)
        if request.id in queues.requests:
            raise InvalidRequest(
                f"request {request.id!r} is in progress; ids must be unique", param="request_id"
            )
        if self._tables.blocks_to_hold(len(request.token_ids)) > self.pool.capacity:
            raise exhausted(len(request.token_ids), self.pool.capacity * limits.block_tokens)
        seats = 0 if self._crowded and queues.waiting else max(0, limits.max_num_seqs - len(queues.running))
        rate = self._times.drain.tokens_per_s
        check_queue(request, limits, len(queues.waiting), queues.num_waiting_tokens, seats, rate)
        try:
            self._tables.hash_prompt(request)
        except OverflowError:
            raise InvalidRequest(
                "prompt token ids must fit 32 bits; send ids of this model", param="prompt"
            ) from None
        params = request.params
        most = limits.max_model_len if params.max_tokens is None else num_prompt + params.max_tokens
        request.max_total_tokens = min(most, limits.max_model_len)
        request.stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            request.stop_ids |= self._eos
        queues.add(request, self._step)

    def abort(self, request_id: str) -> Request | None:
        """End a request in whatever state; None if there is no such, so repeating it does no harm."""
        return self.finish(request_id, "abort")

    def finish(self, request_id: str, reason: str, error: EngineError | None = None) -> Request | None:
        """End a request for a reason found outside: a stop string, a deadline, a broken grammar."""
        request = self._queues.requests.get(request_id)
        if request is not None:
            self._queues.end(request, reason, error)
        return request

    def schedule(self) -> Plan:
        """Plan the next step. Without chunks there is nothing to run now, and nothing to commit."""
        self._step += 1
        planned_s = self._clock()
        self._tables.begin(self._step)
        draft = Draft(self._step, self.limits, self._queues, self._tables, self._times.step_cost.cost)
        draft.fill()
        self._prompt_tokens_left = draft.prompt_tokens_left
        self._num_preemptions += draft.num_preemptions
        self._crowded = bool(self._queues.waiting)
        if not draft.singles and not draft.chunks:
            self._tables.settle(self._step)
        return Plan(
            step=self._step,
            chunks=(*draft.singles, *draft.chunks),
            num_decodes=len(draft.singles),
            num_tokens=len(draft.singles) + sum(chunk.count for chunk in draft.chunks),
            num_samples=len(draft.singles) + sum(chunk.samples for chunk in draft.chunks),
            preempted=self._queues.take_evicted(),
            failed=tuple(draft.failed),
            time_s=planned_s,
        )

    def commit(
        self, plan: Plan, sampled: Sequence[int], broken: Mapping[str, EngineError] | None = None
    ) -> Committed:
        """Apply the results of the oldest plan in flight.

        sampled: one token id per chunk that samples, in plan order. broken: requests whose row of logits
        cannot be used (NaN), with the error to end them with; their token is ignored. What they may have
        spoilt leaves the prefix cache, and whoever has read that, perhaps the broken request itself, is
        computed anew.
        """
        if len(sampled) != plan.num_samples:
            raise ValueError(f"{plan.num_samples} chunks sample, got {len(sampled)} tokens")
        if not plan.chunks:
            return Committed([], [])
        self._require_oldest(plan)
        prefill_tokens = plan.num_tokens - plan.num_decodes
        others_wait = bool(self._queues.waiting)
        self._times.observe(plan.time_s, self._clock(), plan.num_tokens, prefill_tokens, others_wait)
        result = self._append(plan, sampled, broken or {})
        for request_id, error in (broken or {}).items():
            request = self._queues.requests.get(request_id)
            fresh = request is not None and request.stale_step < plan.step <= request.last_step
            if request is not None and fresh and contain(self._queues, self._tables, request, error):
                result.finished.append(request)
        self._tables.settle(plan.step)
        return result

    def fail(self, plan: Plan, culprits: Mapping[str, EngineError] | None = None) -> list[Request]:
        """Roll back the oldest plan in flight and those behind it, which built on it. Returns who has ended.

        Culprits end with their error, all others wait in front to be computed again. A later plan that
        already runs must still be settled, by commit or fail, with whatever results: they are stale.
        """
        if not plan.chunks:
            return []
        self._require_oldest(plan)
        roll_back(self._queues, self._tables, plan.step)
        ended = [self.finish(request_id, "error", error) for request_id, error in (culprits or {}).items()]
        self._tables.settle(plan.step)
        return [request for request in ended if request is not None]

    def stats(self) -> Stats:
        """Gauges now and counters since the start."""
        return Stats(
            num_running=len(self._queues.running),
            num_waiting=len(self._queues.waiting),
            num_waiting_tokens=self._queues.num_waiting_tokens,
            kv_cache_usage=self.pool.usage,
            prefix_cache_queries=self.pool.queries,
            prefix_cache_hits=self.pool.hits,
            num_preemptions=self._num_preemptions,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            step_seconds=self._times.last_step_s,
            step_tokens=self._times.last_step_tokens,
            queued_prefill_tokens=self._queues.num_uncached_tokens
            + (self._prompt_tokens_left if self._queues.running else 0),
            step_cost=self._times.step_cost.cost,
        )

    def check_integrity(self) -> None:
        """Raise RuntimeError if an invariant of requests, tables and pool is broken. Walks all blocks."""
        self._queues.check()
        for request in self._queues.running:
            self._tables.check(request)
        self.pool.check_integrity(
            [*(request.block_ids for request in self._queues.running), *self._tables.fenced]
        )

    def _append(self, plan: Plan, sampled: Sequence[int], broken: Mapping[str, EngineError]) -> Committed:
        """Give each request its token, and end those for which it is the last."""
        result = Committed([], [])
        block_tokens, step, tables = self.limits.block_tokens, plan.step, self._tables
        tokens = iter(sampled)
        for chunk in plan.chunks:
            if not chunk.samples:
                continue
            token, request = next(tokens), chunk.request
            if request.stale_step >= step or (broken and request.id in broken):
                continue
            if request.num_verified_blocks < request.num_published_blocks:
                tables.vouch(request)
            request.num_pending -= 1
            request.token_ids.append(token)
            result.advanced.append(request)
            known = len(request.token_ids)
            output = known - request.num_prompt_tokens
            if output == 1:
                self._prompt_tokens += request.num_prompt_tokens
            if token in request.stop_ids and output > request.params.min_tokens:
                is_eos = token in self._eos and not request.params.ignore_eos
                request.stop_reason = None if is_eos else token
                self._queues.end(request, "stop")
                result.finished.append(request)
            elif known >= request.max_total_tokens:
                self._queues.end(request, "length")
                result.finished.append(request)
            elif not known % block_tokens and request.num_computed_tokens >= known:
                tables.publish(request)  # the step ahead fills the block, and now its last token is known
        self._generation_tokens += len(result.advanced)
        return result

    def _require_oldest(self, plan: Plan) -> None:
        oldest = self._tables.oldest_flight
        if plan.step != oldest:
            raise RuntimeError(f"plan {plan.step} cannot be settled: next is {oldest}; settle in order, once")
