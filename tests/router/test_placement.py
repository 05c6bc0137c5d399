"""Placement: choice, accounts and corrections, without a socket."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_api.request_prefix import BLOCK_BYTES
from shoal_router.discovery import Address
from shoal_router.endpoints import Endpoint, Report
from shoal_router.errors import NoReplicaReady
from shoal_router.fields import read_fields
from shoal_router.models import ModelTable
from shoal_router.placement import Placement
from shoal_router.placer import Placer
from shoal_router.policy import Weights
from shoal_router.pool import Pool
from shoal_router.prefix_index import PrefixIndex
from shoal_router.prices import LearnedPrices
from shoal_router.prompt import Prompt, Work, read_prompt
from shoal_router.routing import Routing
from shoal_router.standing import ABSENT, HEALTHY, Standing, State
from shoal_router.usage import BytesPerToken, Usage

SUSPECT = Standing(State.SUSPECT, 0, 1, 10.0)
HALF_OPEN = Standing(State.HALF_OPEN, 0, 1, 10.0)


class Fleet:
    """Replicas a, b, c, ... of model m behind one router's placer."""

    def __init__(
        self, count: int, *, seed: int = 0, blocks: int = 1000, routing: Routing | None = None
    ) -> None:
        self.index = PrefixIndex()
        self.endpoints = []
        for slot in range(count):
            address = Address("abcdefgh"[slot], "127.0.0.1", 1)
            report = Report((("m", b"{}"),))
            self.endpoints.append(
                Endpoint(address, slot, Pool(address, 1.0), standing=HEALTHY, report=report)
            )
            self.index.add(slot, blocks)
        self.models = ModelTable(self.endpoints, routing)
        pick = random.Random(seed).randrange
        self.placer = Placer(self.models, self.index, BytesPerToken(), LearnedPrices(), pick)

    def place(self, prompt: Prompt, *tried: Endpoint) -> Placement:
        return self.placer.place(prompt, tried)

    def serve(self, prompt: Prompt) -> str:
        """Place, answer and end; returns the replica's name."""
        placement = self.place(prompt)
        placement.endpoint.discharge(placement.uncached_tokens, placement.stamp)
        return placement.endpoint.name


def prompt(text: str, work: Work = Work.GENERATE) -> Prompt:
    return read_prompt(read_fields(json.dumps({"prompt": text}).encode()), "m", work)


def long(name: str, blocks: int = 20) -> Prompt:
    return prompt(name * (BLOCK_BYTES * blocks // len(name)) + name)


def test_equal_beginnings_go_to_the_replica_that_had_the_first() -> None:
    fleet = Fleet(4)
    homes = {name: fleet.serve(long(name)) for name in ("ab", "cd", "ef", "gh", "ij")}
    for name, home in homes.items():
        for ending in range(3):
            assert fleet.serve(prompt(name * (BLOCK_BYTES * 10) + f" {ending}")) == home


def test_burst_of_equal_prompts_stays_together_before_the_first_is_answered() -> None:
    fleet = Fleet(4)
    placed = {fleet.place(long("xy")).endpoint.name for _ in range(5)}
    assert len(placed) == 1


@given(st.lists(st.text("abc", min_size=300, max_size=900), min_size=1, max_size=20, unique=True))
@settings(max_examples=30, deadline=None)
def test_routers_without_a_shared_store_agree_on_cold_prompts(texts: list[str]) -> None:
    one, other = Fleet(4, seed=1), Fleet(4, seed=2)
    for text in texts:
        assert one.serve(prompt(text)) == other.serve(prompt(text))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_excluded_or_unready_replicas_are_never_chosen(data: st.DataObject) -> None:
    fleet = Fleet(5)
    for endpoint in fleet.endpoints:
        endpoint.standing = data.draw(st.sampled_from([HEALTHY, HALF_OPEN, SUSPECT, ABSENT]))
        for _ in range(data.draw(st.integers(0, 2))):
            endpoint.charge(data.draw(st.floats(0, 1e4)), fleet.index.use(endpoint.slot, []))
    tried = data.draw(st.sets(st.sampled_from(fleet.endpoints)))
    ready = [e for e in fleet.endpoints if e.state in (State.HEALTHY, State.HALF_OPEN)]
    ejected = [e for e in fleet.endpoints if e.state is State.SUSPECT]
    allowed = ready + ejected if len(ejected) > len(ready) else ready
    left = [e for e in allowed if e not in tried]
    one = data.draw(st.sampled_from([long("q"), prompt("short"), prompt("t", Work.TOKENIZE)]))
    if not left:
        with pytest.raises(NoReplicaReady):
            fleet.place(one, *tried)
        return
    free = [e for e in left if e.state is not State.HALF_OPEN or e.in_flight == 0] or left
    assert fleet.place(one, *tried).endpoint in free


@given(st.lists(st.tuples(st.sampled_from("pfd"), st.integers(0, 10)), max_size=60))
@settings(max_examples=100, deadline=None)
def test_accounts_are_balanced_after_any_order_of_events(events: list[tuple[str, int]]) -> None:
    fleet = Fleet(3)
    running: list[Placement] = []
    for kind, which in events:
        if kind == "p":
            running.append(fleet.place(long("abcdefghijk"[which])))
        elif running:
            placement = running[which % len(running)]
            if kind == "f":
                placement.endpoint.first_byte(placement.uncached_tokens, placement.stamp)
            else:
                running.remove(placement)
                placement.endpoint.discharge(placement.uncached_tokens, placement.stamp)
        assert sum(e.in_flight for e in fleet.endpoints) == len(running)
        assert all(e.queued_tokens >= -1e-6 for e in fleet.endpoints)
    for placement in running:
        placement.endpoint.discharge(placement.uncached_tokens, placement.stamp)
    assert all((e.in_flight, e.queued_tokens, e.waiting) == (0, 0.0, {}) for e in fleet.endpoints)


def test_first_byte_takes_the_prompt_off_the_queue_and_the_end_takes_the_request_off() -> None:
    fleet = Fleet(1)
    placement = fleet.place(long("ab"))
    endpoint = placement.endpoint
    assert endpoint.queued_tokens == placement.uncached_tokens > 1000
    endpoint.first_byte(placement.uncached_tokens, placement.stamp)
    assert (endpoint.in_flight, endpoint.queued_tokens) == (1, 0)


def test_least_load_ignores_caches() -> None:
    fleet = Fleet(3, routing=Routing(prefer_cached=False))
    names = [fleet.place(long("same")).endpoint.name for _ in range(6)]
    assert sorted(names) == ["a", "a", "b", "b", "c", "c"]


def test_load_that_others_put_on_a_replica_counts() -> None:
    fleet = Fleet(2)
    fleet.endpoints[0].elsewhere = 50
    assert {fleet.place(prompt(str(i))).endpoint.name for i in range(20)} == {"b"}


def test_hot_prefix_spreads_when_its_replica_is_far_above_the_mean() -> None:
    fleet = Fleet(4, routing=Routing(Weights(mean_load=1.25)))
    names = set()
    for _ in range(80):
        placement = fleet.place(long("hot", blocks=200))
        placement.endpoint.first_byte(placement.uncached_tokens, placement.stamp)  # stays in flight
        names.add(placement.endpoint.name)
    assert names == {"a", "b", "c", "d"}
    assert max(e.in_flight for e in fleet.endpoints) <= 40


def serve_with_usage(fleet: Fleet, one: Prompt, cached_share: float) -> Endpoint:
    placement = fleet.place(one)
    tokens = one.content_bytes // 4
    fleet.placer.settle(placement, one, Usage(tokens, round(tokens * cached_share)))
    placement.endpoint.discharge(placement.uncached_tokens, placement.stamp)
    return placement.endpoint


def test_wrong_belief_makes_the_index_forget_what_was_used_no_later() -> None:
    fleet = Fleet(1)
    old, lost, young = long("old"), long("lost"), long("young")
    for one in (old, lost, young):
        serve_with_usage(fleet, one, 0)
    endpoint = serve_with_usage(fleet, lost, 0)  # believed cached, but the engine had evicted it
    assert endpoint.tally.contradictions == 1
    assert fleet.index.match(old.chain) == {}, "used before what was evicted"
    assert fleet.index.match(young.chain) == {0: len(young.chain)}
    assert fleet.index.match(lost.chain) == {0: len(lost.chain)}, "computed again just now"


def test_right_belief_contradicts_nothing_and_is_counted() -> None:
    fleet = Fleet(1)
    serve_with_usage(fleet, long("ab"), 0)
    endpoint = serve_with_usage(fleet, long("ab"), 0.97)
    assert endpoint.tally.contradictions == 0
    assert endpoint.tally.cached_tokens == pytest.approx(endpoint.tally.predicted_tokens, rel=0.05)


def test_miss_of_what_is_still_being_computed_is_no_contradiction() -> None:
    fleet = Fleet(1)
    first = fleet.place(long("ab"))
    second = fleet.place(long("ab"))
    fleet.placer.settle(second, long("ab"), Usage(1280, 0))
    assert first.endpoint.tally.contradictions == 0
    assert fleet.index.match(long("ab").chain) == {0: 20}


def test_tokens_per_byte_are_learned_from_usage() -> None:
    fleet = Fleet(1)
    for i in range(100):
        one = long(f"chinese{i}")
        placement = fleet.place(one)
        fleet.placer.settle(placement, one, Usage(one.content_bytes // 2, None))
        placement.endpoint.discharge(placement.uncached_tokens, placement.stamp)
    fresh = fleet.place(long("another"))
    assert fresh.uncached_tokens == pytest.approx(long("another").content_bytes / 2, rel=0.05)


def reporting(fleet: Fleet) -> None:
    for endpoint in fleet.endpoints:
        fleet.index.report(endpoint.slot)


def test_burst_stays_together_on_replicas_that_report_and_failed_requests_leave_nothing() -> None:
    fleet = Fleet(4)
    reporting(fleet)
    placements = [fleet.place(long("xy")) for _ in range(5)]
    assert len({placement.endpoint.name for placement in placements}) == 1
    for placement in placements:
        placement.end()
    reported = fleet.index.report(placements[0].endpoint.slot)
    for _ in range(2):
        reported.updated()
    assert len(fleet.index) == 0


def test_engine_that_evicted_against_expectation_is_not_contradicted_when_it_reports() -> None:
    fleet = Fleet(1)
    reporting(fleet)
    chain = long("ab").chain
    fleet.index.report(0).store(chain)
    serve_with_usage(fleet, long("ab"), 0)
    assert fleet.index.match(chain) == {0: len(chain)}, "its next update says what is so"


def test_queue_of_others_is_at_most_their_share_of_what_the_engine_has() -> None:
    endpoint = Fleet(1).endpoints[0]
    endpoint.charge(100, 1)
    endpoint.take(Report(running=1), 1, 5000)
    assert endpoint.queued_elsewhere == 0, "the engine counts another number of tokens for the same request"
    endpoint.take(Report(running=3, waiting=1), 1, 5000)
    assert endpoint.queued_elsewhere == 5000 * 3 / 4


def test_request_waits_where_its_prefix_is_rather_than_being_computed_anew_elsewhere() -> None:
    fleet = Fleet(2)
    holder = fleet.place(long("ab", blocks=60)).endpoint
    for endpoint in fleet.endpoints:
        endpoint.take(Report((("m", b"{}"),), max_num_seqs=4, max_requests=20), 0)
    holder.elsewhere = 8  # beyond what may wait there, while the other is idle
    assert fleet.place(long("ab", blocks=60)).endpoint is holder
    holder.elsewhere = 20
    assert fleet.place(long("ab", blocks=60)).endpoint is not holder


def test_tokens_that_another_replica_generated_are_charged_with_the_prompt() -> None:
    fleet = Fleet(1)
    plain = fleet.place(prompt("to be or not to be"))
    resumed = fleet.placer.place(prompt("to be or not to be, rather"), (), 500)
    (endpoint,) = fleet.endpoints
    assert 500 < resumed.uncached_tokens - plain.uncached_tokens < 510
    assert endpoint.queued_tokens == plain.uncached_tokens + resumed.uncached_tokens
    for placement in (resumed, plain):
        placement.end()
    assert (endpoint.in_flight, endpoint.queued_tokens) == (0, 0.0)
