"""Scheduler and block pool under any sequence of events, against a device that knows what each slot holds."""

from __future__ import annotations

from collections import deque
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, assume, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal_engine.blocks import BlockPool
from shoal_engine.errors import EngineError, KVCacheExhausted, QueueFull
from shoal_engine.limits import SchedulerLimits
from shoal_engine.plan import Plan
from shoal_engine.request import Request, Status
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.scheduler import Scheduler
from tests.engine.content_device import BAD, EOS, VOCABULARY, ContentDevice, Launch, Launched, right_answer

FAULT = EngineError("no finite logits")
BASES = ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 4, [1, 2, 3, 4, 4, 3, 2, 1] * 5)

sizes = st.fixed_dictionaries(
    {
        "block_tokens": st.sampled_from([1, 2, 4]),
        "max_num_batched_tokens": st.integers(1, 6) | st.integers(5, 40),
        "max_num_seqs": st.integers(1, 6),
        "max_model_len": st.integers(20, 60),
        "max_num_queued_reqs": st.sampled_from([None, 0, 2, 8]),
        "max_num_queued_tokens": st.sampled_from([None, 30]),
        "long_prefill_token_threshold": st.sampled_from([None, None, 0, 3]),
        "min_shared_chunk": st.integers(1, 8),
        "sliding_window": st.sampled_from([None, None, None, 1, 3, 8]),
        "watermark": st.sampled_from([0.0, 0.0, 0.2]),
        "ageing_steps": st.sampled_from([1, 7, 512]),
    }
)


class SchedulerMachine(RuleBasedStateMachine):
    """The engine's loop, up to `depth` steps ahead of the device, with everything that can go wrong in between."""

    @initialize(
        sizes=sizes,
        num_blocks=st.integers(3, 10) | st.integers(8, 40),
        caching=st.sampled_from([True, True, False]),
        depth=st.integers(1, 3),
    )
    def start(self, sizes: dict[str, Any], num_blocks: int, caching: bool, depth: int) -> None:
        self.limits = SchedulerLimits(**sizes)
        if self.limits.sliding_window is not None:
            num_blocks = max(num_blocks, 3 + -(-(self.limits.sliding_window - 1) // self.limits.block_tokens))
        self.scheduler = Scheduler(
            self.limits, BlockPool(num_blocks, caching), eos_token_ids=[EOS], clock=lambda: 0.0
        )
        self.device = ContentDevice(self.limits.block_tokens, self.limits.sliding_window)
        self.depth = depth
        self.flights: deque[Launch] = deque()
        self.live: dict[str, Request] = {}
        self.faulty: set[str] = set()  # requests in whose steps something went wrong
        self.computed: dict[str, int] = {}  # position up to which each request has been planned
        self.num_added = 0
        self.prepare()

    def prepare(self) -> None:
        """For machines that follow something else as well."""

    @precondition(lambda self: len(self.live) < 12)
    @rule(
        base=st.sampled_from(BASES),
        shared=st.integers(0, 16) | st.integers(17, 36),
        own=st.lists(st.integers(1, VOCABULARY - 1), max_size=5),
        copies=st.integers(1, 4),
        salt=st.sampled_from(["", "", "", "a"]),
        adapter=st.sampled_from([("", None), ("", None), ("x", None), ("y", bytes(32))]),
        priority=st.integers(-2, 2),
        given=st.sampled_from([0, 0, 0, 1, 4, 11]),
        fields=st.fixed_dictionaries(
            {
                "max_tokens": st.sampled_from([None, 1, 5, 17, 24]),
                "ignore_eos": st.sampled_from([True, True, False]),
                "stop_token_ids": st.sampled_from([(), (), (5, 6)]),
                "prompt_logprobs": st.sampled_from([None, None, None, 0]),
                "min_tokens": st.sampled_from([0, 0, 1]),
            }
        ),
    )
    def add(
        self,
        base: list[int],
        shared: int,
        own: list[int],
        copies: int,
        salt: str,
        adapter: tuple[str, bytes | None],
        priority: int,
        given: int,
        fields: dict[str, Any],
    ) -> None:
        """Several requests whose prompts begin alike arrive together, some with the first part of their answers."""
        assume(shared or own)
        for copy in range(copies):
            self.num_added += 1
            prompt = base[:shared] + own[: len(own) - copy] or base[:1]
            named = {"cache_salt": salt, "adapter": adapter[0], "adapter_digest": adapter[1]}
            request = Request(
                f"r{self.num_added}",
                prompt,
                SamplingParams(**fields),
                float(self.num_added),
                priority=priority,
                output_token_ids=self.answer_to(prompt, fields, named)[:given],
                **named,
            )
            waiting, running = self.scheduler.num_waiting, self.scheduler.num_running
            try:
                self.scheduler.add(request)
            except EngineError as error:
                if isinstance(error, QueueFull):
                    assert waiting or running == self.limits.max_num_seqs
                continue
            self.live[request.id] = request

    def answer_to(self, prompt: list[int], fields: dict[str, Any], named: dict[str, Any]) -> list[int]:
        """The right answer but for its last token, as another engine would give it; nothing if that refuses it."""
        twin = Request("twin", prompt, SamplingParams(**fields), 0.0, **named)
        try:
            Scheduler(self.limits, BlockPool(100), eos_token_ids=[EOS]).add(twin)
        except EngineError:
            return []
        return right_answer(twin)[:-1]

    @precondition(lambda self: len(self.flights) < self.depth)
    @rule()
    def plan(self) -> None:
        plan = self.scheduler.schedule()
        self.check_plan(plan)
        for request in plan.failed:
            self.check_exhausted(request)
            del self.live[request.id]
        if plan.chunks:
            self.flights.append(self.device.launch(plan))

    @precondition(lambda self: self.flights)
    @rule()
    def settle(self) -> None:
        self.commit()

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def settle_with_a_fault(self, data: st.DataObject) -> None:
        chunks = self.flights[0].plan.chunks
        unseen = [
            chunk.request.id for chunk in chunks if not chunk.samples
        ]  # no row of logits shows the fault yet
        self.commit({data.draw(st.sampled_from(unseen or [chunk.request.id for chunk in chunks]))})

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        launch = self.flights.popleft()
        self.device.crash(launch)
        ids = [chunk.request.id for chunk in launch.plan.chunks]
        culprits = data.draw(st.sets(st.sampled_from(ids), max_size=2))
        ended = self.scheduler.fail(launch.plan, dict.fromkeys(culprits, FAULT))
        for later in self.flights:
            later.abandoned = True
        assert {request.id for request in ended} == culprits & self.live.keys()
        for request in ended:
            assert request.error is FAULT
            assert request.finish_reason == "error"
            del self.live[request.id]

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.live)))
        request = self.scheduler.abort(request_id)
        assert request is self.live.pop(request_id)
        assert request.finish_reason == "abort"
        assert self.scheduler.abort(request_id) is None

    @rule(count=st.integers(1, 30))
    def run_undisturbed(self, count: int) -> None:
        for _ in range(count):
            while len(self.flights) < self.depth:
                before = len(self.flights)
                self.plan()
                if len(self.flights) == before:
                    break
            if self.flights:
                self.settle()

    @invariant()
    def nothing_is_broken(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check_integrity()
        pool = self.scheduler.pool
        for launch in self.flights:
            for launched in launch.chunks:
                for block in self.device.read_blocks(launched):
                    assert pool.references(block), f"block {block} of a step in flight is free"
        if not self.live and not self.flights:
            assert pool.num_free == pool.capacity
        assert self.live.keys() == {r.id for r in self.live.values() if self.scheduler.get(r.id) is r}

    def teardown(self) -> None:
        """Whatever has happened: everybody left gets an answer in bounded time, and all blocks come back."""
        if not hasattr(self, "scheduler"):
            return
        most_steps = 100 + 10 * sum(request.max_total_tokens for request in self.live.values())
        for _ in range(most_steps // 5):
            if not self.scheduler.has_work:
                break
            self.run_undisturbed(5)
        assert not self.live, "requests starve"
        assert not self.scheduler.has_work
        self.nothing_is_broken()

    def commit(self, faulty: set[str] | None = None) -> None:
        launch = self.flights.popleft()
        if launch.abandoned:
            self.device.crash(launch)
            committed = self.scheduler.commit(launch.plan, [EOS] * launch.plan.num_samples)
            assert committed == ([], [])
            return
        self.faulty |= faulty or set()
        stale = {c.request.id for c in launch.plan.chunks if c.request.stale_step >= launch.plan.step}
        sampled, bad_rows = self.device.run(launch, faulty or ())
        committed = self.scheduler.commit(launch.plan, sampled, dict.fromkeys(bad_rows, FAULT))
        expected = {c.request.id for c in launch.plan.chunks if c.samples} - stale - set(bad_rows)
        assert {request.id for request in committed.advanced} == expected
        for launched in launch.chunks:
            if launched.chunk.request.id in set(bad_rows) - stale:
                self.check_unpublished(launched)
        for request in committed.finished:
            del self.live[request.id]
            self.check_finished(request)

    def check_plan(self, plan: Plan) -> None:
        chunks = plan.chunks
        assert plan.num_tokens == sum(chunk.count for chunk in chunks) <= self.limits.max_num_batched_tokens
        assert len({chunk.request.id for chunk in chunks}) == len(chunks) <= self.limits.max_num_seqs
        assert plan.num_samples == sum(chunk.samples for chunk in chunks)
        assert all(chunk.count == 1 and chunk.samples for chunk in chunks[: plan.num_decodes])
        assert not any(chunk.count == 1 and chunk.samples for chunk in chunks[plan.num_decodes :])
        for chunk in chunks:
            request, end = chunk.request, chunk.start + chunk.count
            assert chunk.count > 0
            assert request.status is Status.RUNNING
            assert end == request.num_computed_tokens
            assert chunk.samples == (end == request.num_tokens - chunk.samples)
            assert request.num_tokens <= request.max_total_tokens
            # The last token of a prompt is computed for its logits, unless there is an answer to go on with.
            assert (request.num_cached_tokens or 0) < request.num_prompt_tokens + bool(
                request.num_given_tokens
            )
            if request.params.prompt_logprobs is not None and not request.num_given_tokens:
                assert not request.num_cached_tokens
            if self.limits.long_prefill_token_threshold:
                assert chunk.count <= self.limits.long_prefill_token_threshold

    def check_unpublished(self, launched: Launched) -> None:
        """What a bad row was computed from is found by nobody any more, as far as it is bad."""
        for block in self.device.read_blocks(launched):
            if self.scheduler.pool.is_cached(block):
                assert BAD not in [self.device.slots.get((block, i)) for i in range(self.limits.block_tokens)]

    def check_finished(self, request: Request) -> None:
        output = request.token_ids[request.num_prompt_tokens :]
        right = right_answer(request)
        if request.error is not None:
            assert request.finish_reason == "error"
            assert request.id in self.faulty, "an innocent request was ended"
            assert output == right[: len(output)]
            return
        assert output == right
        assert request.finish_reason in ("stop", "length")
        assert (request.finish_reason == "stop") == (
            output[-1] in request.stop_ids and len(output) > request.params.min_tokens
        )

    def check_exhausted(self, request: Request) -> None:
        assert isinstance(request.error, KVCacheExhausted)
        assert self.limits.sliding_window is None
        assert -(-len(request.token_ids) // self.limits.block_tokens) > self.scheduler.pool.capacity


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
