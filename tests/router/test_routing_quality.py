"""What the choice is worth, in simulated time: hit rate and waiting on the workloads where the peers lose."""

from __future__ import annotations

import random

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


def at_random(seed: int = 3) -> Result:
    rng = random.Random(seed)
    return play(SHARED, by_client(lambda number, replicas: rng.randrange(replicas)))


def test_shared_prompts_are_served_from_cache_and_far_better_than_at_random() -> None:
    ours, chance = play(SHARED, by_router()), at_random()
    assert ours.hit_rate > 0.97
    assert ours.hit_rate > chance.hit_rate + 0.25
    assert ours.p99_ms < 60 < chance.p99_ms


def test_one_hot_prompt_does_not_pile_up_on_its_replica() -> None:
    ours = play(ONE_HOT, by_router(), cache_blocks=4096)
    assert ours.hit_rate > 0.98
    assert ours.p99_ms < 60


def test_conversations_return_to_their_replica() -> None:
    ours = play_chat(by_router(), sessions=240, turns=6, seconds=30)
    spread = play_chat(ROUND_ROBIN, sessions=240, turns=6, seconds=30)
    assert ours.hit_rate > spread.hit_rate + 0.25
    assert ours.p99_ms < spread.p99_ms


def test_prompts_that_share_nothing_lose_nothing() -> None:
    ours, spread = play(UNIQUE, by_router()), play(UNIQUE, ROUND_ROBIN)
    assert ours.p50_ms < 1.05 * spread.p50_ms
    assert ours.p99_ms < 1.1 * spread.p99_ms


def test_routers_side_by_side_lose_little_without_talking_to_one_another() -> None:
    one = play(SHARED, by_router())
    for routers in (2, 4):
        assert play(SHARED, by_router(routers=routers)).hit_rate > one.hit_rate - 0.02
