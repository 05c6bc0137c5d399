"""What the choice is worth, in simulated time: hit rate and waiting on the workloads where the peers lose."""

from __future__ import annotations

import random

import pytest

from tests.router.simulation import (
    Result,
    by_client,
    by_router,
    play,
    play_chat,
    unique_prompts,
    zipf_prompts,
)

SHARED = zipf_prompts(prompts=32, exponent=0.8, rate=60)
ONE_HOT = zipf_prompts(prompts=3, exponent=3.0, rate=140, tokens=6000)
UNIQUE = unique_prompts(rate=60)

ROUND_ROBIN = by_client(lambda number, replicas: number % replicas)
PUSHED = pytest.mark.parametrize("pushed", [True, False], ids=["pushed", "believed"])


def at_random(seed: int = 3) -> Result:
    rng = random.Random(seed)
    return play(SHARED, by_client(lambda number, replicas: rng.randrange(replicas)))


@PUSHED
def test_shared_prompts_are_served_from_cache_and_far_better_than_at_random(pushed: bool) -> None:
    ours, chance = play(SHARED, by_router(pushed=pushed)), at_random()
    assert ours.hit_rate > 0.97
    assert ours.hit_rate > chance.hit_rate + 0.25
    assert ours.p99_ms < 50 < chance.p99_ms


@PUSHED
def test_one_hot_prompt_does_not_pile_up_on_its_replica(pushed: bool) -> None:
    ours = play(ONE_HOT, by_router(pushed=pushed), cache_blocks=4096, seconds=12)
    assert ours.hit_rate > 0.98
    assert ours.p99_ms < 50


def test_conversations_return_to_their_replica() -> None:
    """With one router and with several; about a fifth of their tokens is new in every turn."""
    spread = play_chat(ROUND_ROBIN, sessions=240, turns=6, seconds=30)
    one = play_chat(by_router(), sessions=240, turns=6, seconds=30)
    four = play_chat(by_router(routers=4), sessions=240, turns=6, seconds=30)
    assert one.hit_rate > 0.77
    assert one.hit_rate > spread.hit_rate + 0.25
    assert four.hit_rate > one.hit_rate - 0.01
    assert max(one.p99_ms, four.p99_ms) < spread.p99_ms


@PUSHED
def test_prompts_that_share_nothing_lose_nothing(pushed: bool) -> None:
    ours, spread = play(UNIQUE, by_router(pushed=pushed)), play(UNIQUE, ROUND_ROBIN)
    assert ours.p50_ms < 1.05 * spread.p50_ms
    assert ours.p99_ms < 1.1 * spread.p99_ms


def test_routers_side_by_side_lose_nothing_without_talking_to_one_another() -> None:
    one = play(SHARED, by_router())
    for routers in (2, 4):
        several = play(SHARED, by_router(routers=routers))
        assert several.hit_rate > one.hit_rate - 0.01
        assert several.p99_ms < 50


def test_hot_prompt_stays_quick_with_four_routers() -> None:
    """Each sees a quarter of the requests; the engines tell it of the others."""
    assert play(ONE_HOT, by_router(routers=4), cache_blocks=4096, seconds=12).p99_ms < 100


def test_caches_too_small_for_all_prompts_are_shared_out_also_when_replicas_are_full() -> None:
    """Requests that went where a seat was free would be computed anew there, and fill all seats for longer still."""
    assert play(SHARED, by_router(), cache_blocks=600, seed=12).hit_rate > 0.55
