"""What the scheduler decides, rule by rule. Blocks have 4 tokens here unless a test says otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from shoal_engine.blocks import BlockPool
from shoal_engine.errors import ContextTooLong, EngineError, InvalidRequest, KVCacheExhausted, QueueFull
from shoal_engine.limits import UNLIMITED, SchedulerLimits
from shoal_engine.messages import Submit
from shoal_engine.plan import Committed, Plan
from shoal_engine.request import Request, Status
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.scheduler import Scheduler
from tests.engine.content_device import ContentDevice, Launch, right_answer

EOS = 0
TOKEN = 9  # what every step samples unless a test says otherwise
FAULT = EngineError("no finite logits")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def scheduler(
    num_blocks: int = 101, clock: Clock | None = None, caching: bool = True, **limits: Any
) -> Scheduler:
    fields = {"block_tokens": 4, "max_model_len": 1000, **limits}
    return Scheduler(
        SchedulerLimits(**fields), BlockPool(num_blocks, caching), eos_token_ids=[EOS], clock=clock or Clock()
    )


def request(
    name: str, prompt: int | Sequence[int], priority: int = 0, salt: str = "", **params: Any
) -> Request:
    """A prompt given by its length differs from that of every other name in its first token."""
    if isinstance(prompt, int):
        prompt = [hash(name) % 10_000 + 100, *range(1, prompt)]
    fields = {"max_tokens": 50, **params}
    return Request(name, list(prompt), SamplingParams(**fields), 0.0, priority=priority, cache_salt=salt)


def step(
    s: Scheduler, token: int = TOKEN, broken: Mapping[str, EngineError] | None = None
) -> tuple[Plan, Committed]:
    plan = s.schedule()
    committed = s.commit(plan, [token] * plan.num_samples, broken)
    s.check_integrity()
    return plan, committed


def chunks(plan: Plan) -> list[tuple[str, int, int]]:
    return [(chunk.request.id, chunk.start, chunk.count) for chunk in plan.chunks]


def ids(requests: Sequence[Request]) -> list[str]:
    return [one.id for one in requests]


def finish_all(s: Scheduler, most_steps: int = 500) -> list[Request]:
    finished: list[Request] = []
    for _ in range(most_steps):
        if not s.has_work:
            return finished
        plan, committed = step(s)
        finished += [*plan.failed, *committed.finished]
    raise AssertionError("requests starve")


# Requests in


def test_a_request_is_built_from_what_crosses_the_socket() -> None:
    params = SamplingParams(max_tokens=3)
    one = Request.from_submit(Submit("a", [1, 2], params, priority=4, cache_salt="s", adapter="x"), 7.5)
    assert (one.id, one.token_ids, one.params, one.arrival) == ("a", [1, 2], params, 7.5)
    assert (one.priority, one.cache_salt, one.adapter, one.num_prompt_tokens) == (4, "s", "x", 2)
    assert one.status is Status.WAITING


@pytest.mark.parametrize(
    ("prompt", "params", "error", "says"),
    [
        ([], {}, InvalidRequest, "prompt is empty"),
        ([2**31], {"max_tokens": 1}, InvalidRequest, "32 bits"),
        (20, {"max_tokens": 1}, ContextTooLong, "context is 20 tokens, the prompt has 20"),
        (20, {"max_tokens": None}, ContextTooLong, "the prompt has 20; shorten"),
        (10, {"max_tokens": 11}, ContextTooLong, "max_tokens is 11"),
        (17, {"max_tokens": 1}, KVCacheExhausted, "has 17 tokens, the KV cache of this engine holds 16"),
        (10**6, {"max_tokens": None}, ContextTooLong, "1000000"),
    ],
)
def test_what_can_never_fit_is_refused_at_once(
    prompt: int | list[int], params: dict[str, Any], error: type[EngineError], says: str
) -> None:
    s = scheduler(num_blocks=5, max_model_len=20)
    with pytest.raises(error, match=says):
        s.add(request("a", prompt, **params))
    assert not s.has_work


def test_what_just_fits_is_served() -> None:
    s = scheduler(num_blocks=5, max_model_len=20)
    s.add(request("a", 16, max_tokens=1))
    assert [one.finish_reason for one in finish_all(s)] == ["length"]


def test_an_id_in_use_is_refused_and_may_return_later() -> None:
    s = scheduler()
    s.add(request("a", 5))
    with pytest.raises(InvalidRequest, match="in progress"):
        s.add(request("a", 6))
    s.abort("a")
    s.add(request("a", 6))


@pytest.mark.parametrize(
    ("limits", "waiting", "prompt", "refused"),
    [
        ({"max_num_queued_reqs": 2}, [5, 5], 5, True),
        ({"max_num_queued_reqs": 3}, [5, 5], 5, False),
        ({"max_num_queued_reqs": 0}, [], 5, True),
        ({"max_num_queued_tokens": 20}, [5, 5], 10, False),
        ({"max_num_queued_tokens": 20}, [5, 5], 11, True),
        ({"max_num_queued_tokens": 20}, [], 400, False),  # any prompt may wait alone
        ({"max_num_queued_reqs": None}, [5] * 50, 5, False),
    ],
)
def test_the_queue_is_limited_by_requests_and_by_tokens(
    limits: dict[str, Any], waiting: list[int], prompt: int, refused: bool
) -> None:
    s = scheduler(num_blocks=1001, max_num_seqs=1, **limits)
    s.add(request("running", 5))
    step(s)
    for index, length in enumerate(waiting):
        s.add(request(f"w{index}", length))
    if refused:
        with pytest.raises(QueueFull, match=r"retry in 1 s"):
            s.add(request("x", prompt))
        assert s.num_waiting == len(waiting)
    else:
        s.add(request("x", prompt))


def test_requests_that_the_next_plan_seats_are_not_queued() -> None:
    s = scheduler(max_num_seqs=8, max_num_queued_reqs=2)
    for index in range(10):
        s.add(request(f"r{index}", 5))
    with pytest.raises(QueueFull):
        s.add(request("x", 5))


def test_free_seats_do_not_count_when_the_cache_is_what_is_short() -> None:
    s = scheduler(num_blocks=11, max_num_seqs=8, max_num_queued_reqs=2)
    s.add(request("big", 36))
    s.add(request("w0", 20))
    step(s)
    assert (s.num_running, s.num_waiting) == (1, 1)
    s.add(request("w1", 20))
    with pytest.raises(QueueFull):
        s.add(request("w2", 20))


def test_retry_after_is_the_time_that_the_waiting_tokens_take() -> None:
    clock = Clock()
    s = scheduler(clock=clock, max_num_seqs=1, max_num_queued_tokens=400)
    s.add(request("a", 100))
    plan = s.schedule()
    clock.now_s += 2.0  # 50 prompt tokens per second
    s.commit(plan, [TOKEN])
    s.add(request("b", 380))
    with pytest.raises(QueueFull) as refusal:
        s.add(request("c", 100))
    assert refusal.value.retry_after_s == 8
    assert "retry in 8 s" in refusal.value.message


def test_retry_after_grows_when_the_queue_stands_still() -> None:
    clock = Clock()
    s = scheduler(clock=clock, max_num_seqs=1, max_num_queued_tokens=400)
    s.add(request("a", 100))
    for _ in range(10):
        plan = s.schedule()
        if not s.num_waiting:
            s.add(request("b", 380))
        clock.now_s += 2.0
        s.commit(plan, [TOKEN])
    with pytest.raises(QueueFull) as refusal:
        s.add(request("c", 100))
    assert 8 < refusal.value.retry_after_s <= 120


# One step


def test_decodes_come_first_and_prompts_get_what_is_left_of_the_budget() -> None:
    s = scheduler(max_num_batched_tokens=32)
    s.add(request("long", 70))
    step(s)
    s.add(request("short", 5))
    plan, _ = step(s)
    assert chunks(plan) == [("long", 32, 32)]
    plan, committed = step(s)
    assert chunks(plan) == [("long", 64, 6), ("short", 0, 5)]
    assert ids(committed.advanced) == ["long", "short"]
    s.add(request("next", 40))
    plan, _ = step(s)
    assert chunks(plan) == [("long", 70, 1), ("short", 5, 1), ("next", 0, 28)]
    assert (plan.num_decodes, plan.num_samples, plan.num_tokens) == (2, 2, 30)
    assert [chunk.samples for chunk in plan.chunks] == [True, True, False]


@pytest.mark.parametrize(
    ("budget", "counts"),
    [
        (32, [30]),
        (13, [12, 12, 6]),  # block boundaries where the budget reaches one
        (7, [4, 4, 4, 4, 4, 4, 6]),
        (3, [3] * 10),
        (1, [1] * 30),
    ],
)
def test_a_prompt_is_cut_at_block_boundaries_where_the_budget_reaches_one(
    budget: int, counts: list[int]
) -> None:
    s = scheduler(max_num_batched_tokens=budget)
    s.add(request("a", 30))
    seen = []
    while not s.get("a").num_output_tokens:  # type: ignore[union-attr]
        plan, _ = step(s)
        seen.append(plan.chunks[0].count)
    assert seen == counts


def test_a_prompt_with_one_token_left_is_planned_as_a_decode() -> None:
    s = scheduler()
    s.add(request("a", 1))
    plan, _ = step(s)
    assert plan.num_decodes == 1


def test_no_more_requests_run_than_there_are_seats() -> None:
    s = scheduler(max_num_seqs=3)
    for index in range(5):
        s.add(request(f"r{index}", 5))
    plan, _ = step(s)
    assert [name for name, _, _ in chunks(plan)] == ["r0", "r1", "r2"]
    s.abort("r1")
    plan, _ = step(s)
    assert [name for name, _, _ in chunks(plan)] == ["r0", "r2", "r3"]


def test_an_empty_plan_needs_no_commit() -> None:
    s = scheduler()
    plan = s.schedule()
    assert plan.chunks == ()
    assert s.commit(plan, []) == ([], [])
    assert not s.has_work


def test_plans_are_settled_in_order_and_once() -> None:
    s = scheduler()
    s.add(request("a", 5))
    first, second = s.schedule(), s.schedule()
    with pytest.raises(RuntimeError, match="next is 1"):
        s.commit(second, [TOKEN])
    with pytest.raises(ValueError, match="1 chunks sample, got 2"):
        s.commit(first, [TOKEN, TOKEN])
    s.commit(first, [TOKEN])
    with pytest.raises(RuntimeError, match="next is 2"):
        s.commit(first, [TOKEN])
    s.commit(second, [TOKEN])
    with pytest.raises(RuntimeError, match="next is None"):
        s.fail(second)


# The end of a request


@pytest.mark.parametrize(
    ("params", "tokens", "reason", "stop_reason", "length"),
    [
        ({}, [5, EOS], "stop", None, 2),
        ({"ignore_eos": True, "max_tokens": 3}, [EOS] * 3, "length", None, 3),
        ({"stop_token_ids": [6]}, [5, 6], "stop", 6, 2),
        ({"stop_token_ids": [EOS]}, [EOS], "stop", None, 1),
        ({"stop_token_ids": [EOS], "ignore_eos": True}, [EOS], "stop", EOS, 1),
        ({"max_tokens": 2}, [5, 5], "length", None, 2),
        ({"max_tokens": 2}, [5, EOS], "stop", None, 2),
        ({"max_tokens": 1}, [5], "length", None, 1),
        ({"max_tokens": None}, [5] * 10, "length", None, 10),  # the model's context
        ({"min_tokens": 2}, [EOS, EOS, EOS], "stop", None, 3),
        ({"min_tokens": 2, "stop_token_ids": [6]}, [6, 6, 6], "stop", 6, 3),
        ({"min_tokens": 2, "max_tokens": 2}, [EOS, EOS], "length", None, 2),
    ],
)
def test_a_request_ends_for_the_first_reason_that_holds(
    params: dict[str, Any], tokens: list[int], reason: str, stop_reason: int | None, length: int
) -> None:
    s = scheduler(max_model_len=16)
    one = request("a", 6, **{"max_tokens": 9, **params})
    s.add(one)
    for index, token in enumerate(tokens):
        assert not one.finished
        _, committed = step(s, token)
        assert ids(committed.finished) == (["a"] if index == len(tokens) - 1 else [])
    assert (one.finish_reason, one.stop_reason, one.num_output_tokens) == (reason, stop_reason, length)
    assert not s.has_work
    assert s.pool.num_free == s.pool.capacity


@pytest.mark.parametrize(
    "state", ["waiting", "mid-prompt", "decoding", "in flight", "preempted", "finished", "unknown"]
)
def test_abort_works_in_every_state_and_twice(state: str) -> None:
    s = scheduler(num_blocks=11, max_num_batched_tokens=8)
    one = request("a", 16, max_tokens=2)
    plan = None
    if state != "unknown":
        s.add(one)
    if state in ("mid-prompt", "decoding", "finished"):
        for _ in range({"mid-prompt": 1, "decoding": 2, "finished": 3}[state]):
            step(s)
    if state == "in flight":
        plan = s.schedule()
    if state == "preempted":
        step(s)
        s.fail(s.schedule())
    assert one.finished == (state == "finished")
    ended = s.abort("a")
    assert ended is (None if state in ("finished", "unknown") else one)
    assert s.abort("a") is None
    if ended is not None:
        assert (one.status, one.finish_reason) == (Status.FINISHED, "abort")
    if plan is not None:
        assert s.has_work, "its step is still in flight"
        assert s.commit(plan, [TOKEN] * plan.num_samples) == ([], [])
    s.check_integrity()
    assert not s.has_work
    assert s.pool.num_free == s.pool.capacity


def test_finish_ends_a_request_for_a_reason_from_outside() -> None:
    s = scheduler()
    s.add(request("a", 5))
    step(s)
    ended = s.finish("a", "stop")
    assert ended is not None
    assert ended.finish_reason == "stop"


# Prefix cache


@pytest.mark.parametrize(
    ("first", "second", "cached"),
    [
        (12, 12, 8),  # the last token is always computed, with the whole block that it fills
        (12, 13, 12),
        (13, 13, 12),
        (11, 11, 8),  # never a partial block
        (3, 3, 0),
        (4, 4, 0),
        (4, 5, 4),
        (8, 50, 8),
        (50, 9, 8),
    ],
)
def test_a_prompt_hits_full_blocks_up_to_its_last_token(first: int, second: int, cached: int) -> None:
    s = scheduler()
    prompt = list(range(1, 60))
    s.add(request("a", prompt[:first], max_tokens=1))
    finish_all(s)
    later = request("b", prompt[:second], max_tokens=1)
    s.add(later)
    plan, _ = step(s)
    assert later.num_cached_tokens == cached
    assert chunks(plan) == [("b", cached, second - cached)]


def test_the_answer_is_cached_as_well_for_the_next_turn() -> None:
    s = scheduler()
    s.add(request("a", [1, 2, 3, 4, 5], max_tokens=8))
    finish_all(s)
    turn = request("b", [1, 2, 3, 4, 5, *[TOKEN] * 8, 7, 7], max_tokens=1)
    s.add(turn)
    step(s)
    assert turn.num_cached_tokens == 12


@pytest.mark.parametrize(
    ("fields", "shared"),
    [
        ({}, True),
        ({"cache_salt": "s"}, False),
        ({"adapter": "x", "adapter_digest": b"1" * 32}, False),
        ({"adapter": "x"}, False),
    ],
)
def test_salts_and_adapters_are_kept_apart(fields: dict[str, Any], shared: bool) -> None:
    s = scheduler()
    prompt, params = list(range(1, 20)), SamplingParams(max_tokens=1)
    s.add(Request("a", prompt, params, 0.0))
    finish_all(s)
    other = Request("b", prompt, params, 0.0, **fields)
    s.add(other)
    finish_all(s)
    assert bool(other.num_cached_tokens) == shared
    again = Request("c", prompt, params, 0.0, **fields)
    s.add(again)
    finish_all(s)
    # An adapter that nobody can identify shares with nobody, not even with itself.
    assert bool(again.num_cached_tokens) == (fields.get("adapter") is None or "adapter_digest" in fields)


def test_requests_of_one_step_share_their_prefix() -> None:
    s = scheduler()
    prompt = list(range(1, 14))
    for name in "abc":
        s.add(request(name, [*prompt, ord(name)]))
    plan, _ = step(s)
    assert chunks(plan) == [("a", 0, 14), ("b", 12, 2), ("c", 12, 2)]
    assert s.pool.hits == 24
    assert s.pool.queries == 42


def test_requests_with_one_long_prompt_compute_it_once_between_them() -> None:
    s = scheduler(max_num_batched_tokens=64, min_shared_chunk=8)
    prompt = list(range(1, 162))
    for name in "abcd":
        s.add(request(name, [*prompt, ord(name)], max_tokens=1))
    computed = 0
    while s.has_work:
        computed += step(s)[0].num_tokens
    assert computed == 162 + 3 * 2  # 160 shared tokens once, then the last two of each


def test_prompt_logprobs_compute_the_whole_prompt_and_still_publish_it() -> None:
    s = scheduler()
    prompt = list(range(1, 20))
    s.add(request("a", prompt, max_tokens=1))
    finish_all(s)
    scored = request("b", prompt, max_tokens=1, prompt_logprobs=0)
    s.add(scored)
    plan, _ = step(s)
    assert chunks(plan) == [("b", 0, 19)]
    assert scored.num_cached_tokens == 0
    s = scheduler()
    s.add(request("b", prompt, max_tokens=1, prompt_logprobs=0))
    finish_all(s)
    later = request("c", prompt, max_tokens=1)
    s.add(later)
    step(s)
    assert later.num_cached_tokens == 16


def test_without_prefix_caching_nothing_is_shared() -> None:
    s = scheduler(caching=False)
    for name in "ab":
        s.add(request(name, list(range(1, 20)), max_tokens=1))
        finish_all(s)
    assert (s.pool.hits, s.pool.queries) == (0, 0)


# Too few blocks


def test_the_last_request_gives_way_keeps_its_output_and_comes_back_first() -> None:
    s = scheduler(num_blocks=7)
    s.add(request("a", 8, max_tokens=12))
    s.add(request("b", 8, max_tokens=12))
    plans = []
    while not plans or not plans[-1].preempted:
        plans.append(step(s)[0])
        if len(plans) == 1:
            s.add(request("c", 8, max_tokens=1))
    b = s.get("b")
    assert b is not None
    assert plans[-1].preempted == ("b",)
    assert [name for name, _, _ in chunks(plans[-1])] == ["a"]  # and nobody is admitted in such a step
    assert (b.status, b.num_preemptions, b.num_computed_tokens, b.block_ids) == (Status.WAITING, 1, 0, [])
    kept = list(b.token_ids)
    assert len(kept) > 8
    assert s.stats().num_preemptions == 1
    while s.get("a"):
        step(s)
    plan, _ = step(s)
    assert [name for name, _, _ in chunks(plan)] == ["b", "c"]
    finish_all(s)
    assert b.token_ids[: len(kept)] == kept
    assert b.num_output_tokens == 12


def test_nobody_is_admitted_in_a_step_that_preempts() -> None:
    s = scheduler(num_blocks=8)
    s.add(request("a", 4, max_tokens=40))
    s.add(request("b", 20, max_tokens=40))
    step(s)
    s.add(request("urgent", 8, priority=-1))
    plan, _ = step(s)
    while not plan.preempted:
        assert s.num_waiting == 1
        plan, _ = step(s)
    assert s.pool.num_free >= 4
    assert [name for name, _, _ in chunks(plan)] == ["a"]
    plan, _ = step(s)
    assert [name for name, _, _ in chunks(plan)] == ["a", "urgent"]


def test_a_preempted_request_finds_its_blocks_in_the_cache() -> None:
    s = scheduler(num_blocks=8)
    s.add(request("a", 8, max_tokens=9))
    s.add(request("b", 16, max_tokens=12))
    while not step(s)[0].preempted:
        pass
    while s.get("a"):
        step(s)
    plan, _ = step(s)
    assert plan.chunks[0].request.id == "b"
    assert plan.chunks[0].start >= 12
    assert s.get("b").num_cached_tokens == 0  # type: ignore[union-attr]  # what the user is told is the first admission


@pytest.mark.parametrize(("first", "second", "victim"), [(0, 0, "b"), (1, 0, "a"), (0, 1, "b")])
def test_the_victim_is_the_worst_by_priority_then_arrival(first: int, second: int, victim: str) -> None:
    s = scheduler(num_blocks=6)
    s.add(request("a", 8, priority=first))
    s.add(request("b", 8, priority=second))
    plan, _ = step(s)
    while not plan.preempted:
        plan, _ = step(s)
    assert plan.preempted == (victim,)


def test_a_request_that_outgrows_the_cache_alone_ends_with_an_error() -> None:
    s = scheduler(num_blocks=4)
    one = request("a", 8, max_tokens=20)
    s.add(one)
    s.add(request("b", 8, max_tokens=1))
    finished = finish_all(s)
    assert ids(finished) == ["a", "b"]
    assert isinstance(one.error, KVCacheExhausted)
    assert one.finish_reason == "error"
    assert one.num_output_tokens == 5  # 12 tokens are in the cache, the 13th was sampled from them
    assert "holds 12" in one.error.message


def test_a_prompt_waits_until_all_of_it_fits_and_nobody_overtakes_it() -> None:
    s = scheduler(num_blocks=11, max_num_batched_tokens=8)
    s.add(request("a", 12, max_tokens=4))
    s.add(request("big", 32, max_tokens=1))
    s.add(request("small", 4, max_tokens=1))
    plan, _ = step(s)
    assert chunks(plan) == [("a", 0, 8)]
    assert ids(finish_all(s)) == ["a", "big", "small"]


def test_blocks_that_a_running_prompt_still_needs_are_not_given_to_new_ones() -> None:
    s = scheduler(num_blocks=11, max_num_batched_tokens=8, long_prefill_token_threshold=4)
    s.add(request("a", 32, max_tokens=1))
    s.add(request("b", 12, max_tokens=1))
    plan, _ = step(s)
    assert chunks(plan) == [("a", 0, 4)]  # 9 blocks are free, but a needs 7 of them
    plan, _ = step(s)
    assert chunks(plan) == [("a", 4, 4)]
    assert s.stats().num_preemptions == 0
    finish_all(s)
    assert s.stats().num_preemptions == 0


@pytest.mark.parametrize(("watermark", "running"), [(0.0, 2), (0.3, 1)])
def test_a_watermark_keeps_blocks_free_beside_running_requests(watermark: float, running: int) -> None:
    s = scheduler(num_blocks=11, watermark=watermark)
    s.add(request("a", 16))
    s.add(request("b", 20))
    step(s)
    assert s.num_running == running


# Fairness


def test_a_short_prompt_does_not_wait_for_a_long_one_and_decodes_go_on() -> None:
    s = scheduler(num_blocks=1001, max_num_batched_tokens=1024, max_model_len=4000)
    typing = request("typing", 10, max_tokens=100)
    s.add(typing)
    step(s)
    s.add(request("long", 3800, max_tokens=1))
    short = request("short", 20, max_tokens=1)
    s.add(short)
    plan, committed = step(s)
    assert chunks(plan)[0] == ("typing", 10, 1)
    assert {"typing", "short"} <= set(ids(committed.advanced))
    while s.get("long"):
        before = typing.num_output_tokens
        step(s)
        assert typing.num_output_tokens == before + 1


def test_what_fair_shares_leave_over_is_used() -> None:
    s = scheduler(num_blocks=1001, max_num_batched_tokens=1024, max_model_len=4000)
    s.add(request("long", 3800))
    s.add(request("short", 20))
    plan, _ = step(s)
    assert chunks(plan) == [("long", 0, 1004), ("short", 0, 20)]
    assert plan.num_tokens == 1024


@pytest.mark.parametrize(
    ("threshold", "first", "second"),
    [(None, 1024, 0), (0, 1024, 0), (100, 100, 100)],
)
def test_the_prefill_threshold_adapts_is_off_or_is_fixed(
    threshold: int | None, first: int, second: int
) -> None:
    s = scheduler(
        num_blocks=1001,
        max_num_batched_tokens=1024,
        max_model_len=4000,
        long_prefill_token_threshold=threshold,
    )
    s.add(request("a", 2000))
    s.add(request("b", 2000))
    plan, _ = step(s)
    assert [count for _, _, count in chunks(plan)] == [count for count in (first, second) if count]


@pytest.mark.parametrize(
    ("remaining", "most"),
    [
        ([9000], UNLIMITED),
        ([9000, 9000, 9000], UNLIMITED),  # a share completes nobody: one after another
        ([9000, 100, 9000], 2730),
        ([100, 9000], 4096),
        ([300] * 64, 512),
    ],
)
def test_a_step_is_shared_where_that_completes_a_short_prompt(remaining: list[int], most: int) -> None:
    limits = SchedulerLimits(max_model_len=10_000, max_num_batched_tokens=8192)
    assert limits.max_chunk_tokens(8192, remaining) == most


def test_prefill_beside_decodes_shrinks_to_the_target_step_time() -> None:
    clock = Clock()
    s = scheduler(
        num_blocks=2001, clock=clock, max_num_batched_tokens=1000, max_model_len=4000, target_step_s=0.1
    )
    s.add(request("a", 100, max_tokens=500))
    for number in range(64):
        s.add(request(f"p{number}", 20 + 40 * (number % 7), max_tokens=1))
        plan = s.schedule()
        clock.now_s += 0.02 + 0.0005 * (plan.num_tokens - plan.num_decodes) + 0.005 * plan.num_decodes
        s.commit(plan, [TOKEN] * plan.num_samples)
    while s.num_waiting or s.num_running > 1:
        step(s)
    s.add(request("b", 3000, max_tokens=1))
    plan, _ = step(s)
    (first, second) = chunks(plan)
    assert (first[0], first[2], second[0]) == ("a", 1, "b")
    assert 128 <= second[2] <= 150, "150 would end the step after 0.1 s, and chunks end with a block"
    s.abort("a")
    plan, _ = step(s)
    assert plan.num_tokens == 1000, "nobody waits for a token, so nothing is held back"


def test_queued_prefill_tokens_are_those_that_somebody_still_has_to_compute() -> None:
    s = scheduler(num_blocks=201, max_num_batched_tokens=64, max_num_seqs=2, max_model_len=1000)
    prompt = list(range(100, 200))
    s.add(request("a", prompt, max_tokens=5))
    s.add(request("b", 100, max_tokens=5))
    assert s.stats().queued_prefill_tokens == 200
    step(s)
    assert s.stats().queued_prefill_tokens == 100 - 64 + 100
    finish_all(s)
    assert s.stats().queued_prefill_tokens == 0
    s.add(request("a again", prompt, max_tokens=5))
    assert s.stats().queued_prefill_tokens == 100 - 96
    s.add(request("c", 300))
    for _ in range(3):
        step(s)
    assert s.stats().queued_prefill_tokens > 0
    s.abort("c")
    s.abort("a again")
    assert s.stats().queued_prefill_tokens == 0


def test_lower_priority_numbers_run_sooner() -> None:
    s = scheduler(max_num_seqs=1)
    for name, priority in (("a", 0), ("b", 5), ("c", -5), ("d", 0), ("e", -5)):
        s.add(request(name, 4, priority=priority, max_tokens=1))
    assert ids(finish_all(s)) == ["c", "e", "a", "d", "b"]


def test_what_was_begun_elsewhere_goes_before_what_waits_with_the_same_priority() -> None:
    s = scheduler(max_num_seqs=1)
    for name, given in (("a", []), ("b", [TOKEN]), ("c", [])):
        submit = Submit(name, [1, 2], SamplingParams(max_tokens=2), output_token_ids=given)
        s.add(Request.from_submit(submit, 0.0))
    s.add(request("urgent", 4, priority=-2, max_tokens=1))
    assert ids(finish_all(s)) == ["urgent", "b", "a", "c"]


def test_waiting_outweighs_priority_one_level_per_ageing_steps() -> None:
    s = scheduler(max_num_seqs=1, ageing_steps=10)
    s.add(request("busy", 4, max_tokens=100))
    step(s)
    s.add(request("old", 4, priority=1, max_tokens=1))
    for _ in range(9):
        step(s)
    s.add(request("nine", 4, priority=0, max_tokens=1))
    step(s)
    s.add(request("ten", 4, priority=0, max_tokens=1))  # equal by now, and then the better priority decides
    step(s)
    s.add(request("eleven", 4, priority=0, max_tokens=1))
    s.abort("busy")
    assert ids(finish_all(s)) == ["nine", "ten", "old", "eleven"]


@pytest.mark.parametrize("priority", [1, 3, 10**9])
def test_low_priority_does_not_starve_under_a_constant_stream_of_high_priority(priority: int) -> None:
    s = scheduler(max_num_seqs=1, ageing_steps=4)
    low = request("low", 4, priority=priority, max_tokens=1)
    s.add(low)
    most = 4 * min(priority, 32) + 2
    for index in range(most):
        s.add(request(f"high{index}", 4, priority=0, max_tokens=1))
        step(s)
        if low.finished:
            break
    assert low.finished
    assert index >= 4 * min(priority, 32) - 2, "priorities do count until then"


# One step ahead of the device


def test_the_next_step_is_planned_on_a_token_that_only_the_device_knows() -> None:
    s = scheduler()
    s.add(request("a", 5, max_tokens=3))
    first = s.schedule()
    second = s.schedule()
    assert chunks(second) == [("a", 5, 1)]
    assert s.get("a").num_pending == 2  # type: ignore[union-attr]
    assert ids(s.commit(first, [TOKEN]).advanced) == ["a"]
    third = s.schedule()
    assert chunks(third) == [("a", 6, 1)]
    assert s.commit(second, [TOKEN]).finished == []
    assert s.schedule().chunks == (), "its last token is in flight"
    assert ids(s.commit(third, [TOKEN]).finished) == ["a"]
    assert not s.has_work


def test_results_of_a_request_that_has_ended_are_ignored_and_its_blocks_fenced() -> None:
    s = scheduler(num_blocks=4)
    one = request("a", 5)
    s.add(one)
    first, second = s.schedule(), s.schedule()
    blocks = set(one.block_ids)
    assert ids(s.commit(first, [EOS]).finished) == ["a"]
    s.add(request("b", 9))
    waits = s.schedule()
    assert waits.chunks == (), "two of three blocks may still be written by the step in flight"
    s.check_integrity()
    assert s.commit(second, [TOKEN]) == ([], [])
    plan, _ = step(s)
    assert blocks < set(plan.chunks[0].request.block_ids)


def test_a_block_filled_by_the_step_ahead_is_published_once_its_last_token_is_known() -> None:
    s = scheduler()
    one = request("a", [1, 2, 3], max_tokens=5)
    s.add(one)
    first, second = s.schedule(), s.schedule()
    assert s.pool.num_cached == 0
    s.commit(first, [TOKEN])
    assert s.pool.num_cached == 1
    sibling = request("b", [1, 2, 3, TOKEN, 5], max_tokens=1)
    s.add(sibling)
    s.schedule()
    assert sibling.num_cached_tokens == 4
    s.fail(second)
    assert s.pool.num_cached == 0, "the step that was to write it has failed"


def test_blocks_behind_the_fence_are_waited_for_instead_of_preempting_more() -> None:
    s = scheduler(num_blocks=7)
    for name in "abc":
        s.add(request(name, 7, max_tokens=20))
    first = s.schedule()
    second = s.schedule()
    third = s.schedule()
    assert third.preempted == ("c",)
    assert third.chunks == (), "the blocks of c come free with the steps in flight"
    s.commit(first, [TOKEN] * 3)
    s.commit(second, [TOKEN] * 3)
    fourth = s.schedule()
    assert [name for name, _, _ in chunks(fourth)] == ["a", "b"]
    assert fourth.preempted == ()


# Failures


def test_a_failed_step_is_rolled_back_and_computed_again() -> None:
    s = scheduler()
    prompt = list(range(1, 12))
    s.add(request("a", prompt, max_tokens=2))
    s.add(request("b", prompt, max_tokens=2))
    plan = s.schedule()
    assert s.pool.num_cached == 2
    assert s.fail(plan) == []
    s.check_integrity()
    assert s.pool.num_cached == 0, "nothing that the step has written is found"
    assert (s.num_running, s.num_waiting) == (0, 2)
    plan, _ = step(s)
    assert plan.preempted == ("a", "b")
    assert [one.num_failed_steps for one in finish_all(s)] == [1, 1]


def test_what_earlier_steps_have_written_survives_a_failed_step() -> None:
    s = scheduler(max_num_batched_tokens=8)
    s.add(request("a", list(range(1, 21))))
    step(s)
    s.fail(s.schedule())
    plan, _ = step(s)
    assert chunks(plan) == [("a", 8, 8)]


def test_only_culprits_end_with_a_failed_step() -> None:
    s = scheduler()
    for name in "abc":
        s.add(request(name, 9, max_tokens=3))
    step(s)
    ended = s.fail(s.schedule(), {"b": FAULT, "unknown": FAULT})
    assert [(one.id, one.finish_reason, one.error) for one in ended] == [("b", "error", FAULT)]
    assert ids(finish_all(s)) == ["a", "c"]


def test_a_failed_step_takes_the_steps_behind_it_along() -> None:
    s = scheduler()
    one = request("a", 5, max_tokens=4)
    s.add(one)
    first, second = s.schedule(), s.schedule()
    s.fail(first)
    assert s.commit(second, [TOKEN]) == ([], [])
    assert one.num_output_tokens == 0
    finish_all(s)
    assert one.num_output_tokens == 4


def test_a_bad_row_ends_its_request_and_its_blocks_are_never_found() -> None:
    s = scheduler()
    prompt = list(range(1, 14))
    bad = request("bad", prompt)
    s.add(bad)
    s.add(request("good", 9))
    _, committed = step(s, broken={"bad": FAULT})
    assert ids(committed.advanced) == ["good"]
    assert ids(committed.finished) == ["bad"]
    assert (bad.finish_reason, bad.error, bad.num_output_tokens) == ("error", FAULT, 0)
    later = request("later", prompt)
    s.add(later)
    step(s)
    assert later.num_cached_tokens == 0


def test_a_bad_row_does_not_cost_the_others_what_good_rows_have_vouched_for() -> None:
    s = scheduler()
    system = list(range(1, 14))
    s.add(request("good", [*system, 20]))
    step(s)
    s.add(request("bad", [*system, *range(30, 40)]))
    step(s, broken={"bad": FAULT})
    assert s.num_running == 1
    later = request("later", [*system, 21])
    s.add(later)
    step(s)
    assert later.num_cached_tokens == 12
    assert later.num_failed_steps == 0


def test_blocks_of_a_prompt_in_the_making_are_forgotten_when_its_first_row_is_bad() -> None:
    s = scheduler(max_num_batched_tokens=8)
    prompt = list(range(1, 21))
    s.add(request("bad", prompt))
    step(s)
    step(s)
    assert s.pool.num_cached == 4
    step(s, broken={"bad": FAULT})
    assert s.pool.num_cached == 0


def run_on(device: ContentDevice, s: Scheduler, faulty: Sequence[str] = ()) -> tuple[Launch, Committed]:
    launch = device.launch(s.schedule())
    sampled, bad_rows = device.run(launch, faulty)
    committed = s.commit(launch.plan, sampled, dict.fromkeys(bad_rows, FAULT))
    s.check_integrity()
    return launch, committed


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("preempt", [False, True])
def test_who_has_read_the_blocks_of_a_faulty_neighbour_gets_the_right_answer(
    preempt: bool, window: int | None
) -> None:
    s = scheduler(
        max_num_batched_tokens=16, long_prefill_token_threshold=8, max_model_len=60, sliding_window=window
    )
    device = ContentDevice(block_tokens=4, window=window)
    prompt = list(range(1, 9)) * 4
    source, victim = request("source", prompt, max_tokens=6), request("victim", prompt[:18], max_tokens=6)
    s.add(source)
    s.add(victim)
    run_on(
        device, s, faulty=["source"]
    )  # the victim goes on from the 8 tokens of the source, and is spoilt too
    assert victim.num_cached_tokens == 8
    s.abort("source")
    if preempt:
        s._queues.requeue(victim)  # finds its own spoilt blocks again
    finished = []
    while s.has_work:
        finished += run_on(device, s)[1].finished
    assert ids(finished) == ["victim"]
    assert victim.error is None
    assert victim.token_ids[18:] == right_answer(victim)
    assert victim.num_failed_steps == 1


def test_who_reads_blocks_of_a_bad_row_is_computed_again_before_its_own_row_comes() -> None:
    s = scheduler(max_num_batched_tokens=24, long_prefill_token_threshold=8)
    prompt = list(range(1, 30))
    s.add(request("bad", prompt[:8]))
    s.add(request("reader", prompt))
    plan, committed = step(s, broken={"bad": FAULT})
    assert chunks(plan) == [("bad", 0, 8), ("reader", 8, 8)]
    assert ids(committed.finished) == ["bad"]
    assert (s.num_running, s.num_waiting, s.pool.num_cached) == (0, 1, 0)
    plan, _ = step(s)
    assert chunks(plan) == [("reader", 0, 8)]


def test_once_a_good_row_has_vouched_for_what_was_shared_a_bad_row_is_ones_own() -> None:
    s = scheduler(max_num_batched_tokens=64)
    prompt = list(range(1, 14))
    s.add(request("a", [*prompt, 1]))
    reader = request("reader", [*prompt, 2])
    s.add(reader)
    step(s)
    assert reader.num_cached_tokens == 12
    _, committed = step(s, broken={"reader": FAULT})
    assert ids(committed.finished) == ["reader"]


def test_a_windowed_prompt_with_a_bad_row_leaves_nothing_behind_that_fell_below_the_window() -> None:
    s = scheduler(sliding_window=8, max_num_batched_tokens=16)
    s.add(request("bad", 60))
    for _ in range(3):
        step(s)
    assert s.pool.num_cached == 12
    step(s, broken={"bad": FAULT})
    assert s.pool.num_cached == 0


def test_a_block_that_was_evicted_and_is_written_by_another_is_no_suspect_any_more() -> None:
    s = scheduler(num_blocks=9, max_num_batched_tokens=8)
    bad, innocent = request("bad", 12, priority=1), request("innocent", 13, max_tokens=10)
    s.add(bad)
    step(s)
    unproven = list(bad.block_ids)
    s._queues.requeue(bad)  # its blocks stay in the cache
    held = s.pool.allocate(3)
    s.limits = replace(s.limits, max_num_batched_tokens=16)
    s.add(innocent)
    plan = s.schedule()
    assert unproven[1] == innocent.block_ids[-1]
    s.pool.free(held)
    s.commit(plan, [TOKEN])
    _, committed = step(s, broken={"bad": FAULT})
    assert ids(committed.finished) == ["bad"]
    assert innocent.num_failed_steps == 0


def test_requests_whose_own_prompt_is_the_fault_all_end_even_if_they_share_it() -> None:
    s = scheduler(max_num_batched_tokens=64, min_shared_chunk=8)
    prompt = list(range(1, 42))
    for name in "abcd":
        s.add(request(name, [*prompt, ord(name)]))
    s.add(request("good", 9, max_tokens=3))
    finished: list[Request] = []
    for _ in range(40):
        plan = s.schedule()
        rows = [chunk.request.id for chunk in plan.chunks if chunk.samples and chunk.request.id != "good"]
        finished += s.commit(plan, [TOKEN] * plan.num_samples, dict.fromkeys(rows, FAULT)).finished
        s.check_integrity()
    assert sorted(ids(finished)) == ["a", "b", "c", "d", "good"]
    assert not s.has_work


# Sliding window


def test_blocks_below_the_window_are_given_back() -> None:
    s = scheduler(sliding_window=8, max_num_batched_tokens=16)
    one = request("a", 64, max_tokens=40)
    s.add(one)
    most = 0
    while s.has_work:
        plan, _ = step(s)
        most = max(most, s.pool.capacity - s.pool.num_free)
        if one.num_output_tokens == 20:
            assert one.block_ids[:18] == [0] * 18
            assert all(one.block_ids[19:])
    assert most <= 7  # 8 - 1 seen and 16 computed tokens span at most 7 blocks
    assert plan.num_tokens == 1


def test_a_windowed_prompt_larger_than_the_cache_is_served() -> None:
    s = scheduler(num_blocks=9, sliding_window=8, max_num_batched_tokens=16)
    one = request("a", 200, max_tokens=100)
    s.add(one)
    assert ids(finish_all(s)) == ["a"]
    assert one.finish_reason == "length"


def test_a_windowed_prompt_of_which_only_half_a_window_is_cached_is_computed() -> None:
    s = scheduler(num_blocks=12, sliding_window=8, max_num_batched_tokens=16)
    device = ContentDevice(block_tokens=4, window=8)
    prompt = list(range(1, 42))
    s.add(request("a", prompt, max_tokens=1))
    while s.has_work:
        run_on(device, s)
    held = s.pool.allocate(10)  # all but the last but one block of the prompt
    assert s.pool.num_cached == 1
    s.pool.free(held)
    later = request("b", prompt, max_tokens=1)
    s.add(later)
    launch, _ = run_on(device, s)
    assert launch.plan.chunks[0].start == 0
    while s.has_work:
        run_on(device, s)
    assert later.num_cached_tokens == 4, "on its way it meets that block with the window before it computed"


def test_a_cache_too_small_for_one_window_is_refused() -> None:
    scheduler(num_blocks=5, sliding_window=8)
    with pytest.raises(ValueError, match="needs 4 blocks, the cache has 3"):
        scheduler(num_blocks=4, sliding_window=8)


@pytest.mark.parametrize(
    ("capacity", "tokens"),
    [
        (4, 5),  # three blocks hold 12 tokens wherever they start, 7 of them are read
        (9, 5),
        (10, 9),  # half of it: five blocks
        (20, 16),  # the budget
    ],
)
def test_a_windowed_chunk_takes_half_the_cache_at_most(capacity: int, tokens: int) -> None:
    s = scheduler(num_blocks=capacity + 1, sliding_window=8, max_num_batched_tokens=16)
    s.add(request("a", 100, max_tokens=1))
    plan = s.schedule()
    assert plan.num_tokens == tokens - tokens % 4
    assert s.pool.num_free >= min(capacity // 2, capacity - 4)


def test_a_windowed_prompt_needs_only_the_last_window_in_the_cache() -> None:
    s = scheduler(num_blocks=12, sliding_window=8, max_num_batched_tokens=16)
    prompt = list(range(1, 42))
    s.add(request("a", prompt, max_tokens=1))
    finish_all(s)
    s.add(request("other", 12, max_tokens=1))  # evicts the head of the first prompt
    finish_all(s)
    later = request("b", prompt, max_tokens=1)
    s.add(later)
    plan, _ = step(s)
    assert later.num_cached_tokens == 40
    assert chunks(plan) == [("b", 40, 1)]


# Numbers


def test_stats_say_what_happens() -> None:
    clock = Clock()
    s = scheduler(num_blocks=11, clock=clock, max_num_seqs=1)
    s.add(request("a", list(range(1, 10)), max_tokens=2))
    s.add(request("b", list(range(1, 11)), max_tokens=2))
    plan = s.schedule()
    clock.now_s += 0.5
    s.commit(plan, [TOKEN])
    stats = s.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_waiting_tokens) == (1, 1, 10)
    assert stats.kv_cache_usage == pytest.approx(0.3)
    assert (stats.step_seconds, stats.step_tokens) == (pytest.approx(0.5), 9)
    finish_all(s)
    stats = s.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (19, 8)
    assert (stats.prompt_tokens, stats.generation_tokens) == (19, 4)
    assert (stats.num_running, stats.num_waiting, stats.kv_cache_usage) == (0, 0, 0.0)


def test_the_time_of_a_step_planned_ahead_starts_when_the_one_before_ends() -> None:
    clock = Clock()
    s = scheduler(clock=clock)
    s.add(request("a", 5))
    first, second = s.schedule(), s.schedule()
    clock.now_s += 0.2
    s.commit(first, [TOKEN])
    clock.now_s += 0.3
    s.commit(second, [TOKEN])
    assert s.stats().step_seconds == pytest.approx(0.3)


def test_limits_may_shrink_between_steps() -> None:
    s = scheduler(max_num_batched_tokens=32)
    s.add(request("a", 30))
    s.limits = replace(s.limits, max_num_batched_tokens=8)
    plan, _ = step(s)
    assert chunks(plan) == [("a", 0, 8)]


@pytest.mark.parametrize(
    "fields",
    [
        {"max_num_seqs": 0},
        {"max_num_batched_tokens": 0},
        {"sliding_window": 0},
        {"watermark": 1.0},
        {"ageing_steps": 0},
    ],
)
def test_impossible_limits_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        SchedulerLimits(max_model_len=10, **fields)
