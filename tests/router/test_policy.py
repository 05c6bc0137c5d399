"""The choice of a replica as pure arithmetic."""

from __future__ import annotations

import random
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_router.policy import DEFAULT_PRICES, Candidate, Prefix, Prices, Weights, affinity, choose

WEIGHTS = Weights()


def candidate(identity: int = 0, *, cached: float = 0, queued: float = 0, in_flight: float = 0) -> Candidate:
    return Candidate(identity, cached, queued, in_flight)


def at_home(hashed: int | None) -> Prefix | None:
    return None if hashed is None else Prefix([hashed], 64.0)


def first(n: int) -> int:
    return 0


CASES = {
    "cached prefix wins among idle": (1000, [candidate(), candidate(cached=900)], 1),
    "longer cached prefix wins": (1000, [candidate(cached=512), candidate(cached=900)], 1),
    "few requests do not outweigh a long prefix": (
        1000,
        [candidate(), candidate(cached=900, in_flight=6)],
        1,
    ),
    "queued prefill outweighs a short prefix": (
        1000,
        [candidate(), candidate(cached=100, queued=500)],
        0,
    ),
    "many requests outweigh a prefix": (1000, [candidate(), candidate(cached=400, in_flight=20)], 0),
    "beyond the load bound the cache counts for nothing": (
        20_000,
        [candidate(in_flight=1), candidate(cached=20_000, in_flight=30)],
        0,
    ),
    "below the spare load the bound does not apply": (
        20_000,
        [candidate(), candidate(cached=20_000, in_flight=16)],
        1,
    ),
    "nothing cached, one idle": (1000, [candidate(in_flight=9), candidate(in_flight=3)], 1),
    "requests beyond the seats of a batch wait": (
        100,
        [Candidate(0, 0, 0, 8, 8), Candidate(0, 0, 0, 10, 64)],
        1,
    ),
    "a long prefix is worth some waiting": (
        4000,
        [Candidate(0, 3900, 0, 10, 8), Candidate(0, 0, 0, 8, 64)],
        0,
    ),
    "one replica is always the best": (10, [candidate(queued=1e9, in_flight=1e6)], 0),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("home", [None, 77])
def test_cheapest_replica_is_chosen(name: str, home: int | None) -> None:
    prompt, candidates, best = CASES[name]
    assert choose(prompt, candidates, WEIGHTS, DEFAULT_PRICES, at_home(home), first) == best


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.integers(0, 2**64 - 1),
        st.floats(0, 1e5),
        st.floats(0, 1e6),
        st.floats(0, 1e4),
    ),
    min_size=1,
    max_size=20,
)


@settings(deadline=None)
@given(st.floats(0, 1e5), CANDIDATES, st.none() | st.integers(0, 2**64 - 1), st.integers(0, 2**32))
def test_choice_is_one_of_the_candidates_and_close_to_the_cheapest(
    prompt: float, candidates: list[Candidate], home: int | None, seed: int
) -> None:
    chosen = choose(prompt, candidates, WEIGHTS, DEFAULT_PRICES, at_home(home), random.Random(seed).randrange)
    s = DEFAULT_PRICES.in_flight_tokens
    mean = sum(c.in_flight for c in candidates) / len(candidates)

    def cost(c: Candidate) -> float:
        load = c.queued + s * c.in_flight
        within = c.in_flight <= max(WEIGHTS.mean_load * mean, WEIGHTS.spare_requests)
        return load + WEIGHTS.recompute * (prompt - (c.cached if within else 0))

    slack = 0.0 if home is None else WEIGHTS.near_requests * s
    cheapest = min(map(cost, candidates))
    assert cost(candidates[chosen]) <= cheapest + slack + 1e-6 * abs(cheapest)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=16, unique=True), st.integers(0, 2**64 - 1))
def test_routers_agree_on_a_cold_prefix_in_any_order_and_with_slightly_different_loads(
    identities: list[int], home: int
) -> None:
    one = [candidate(i) for i in identities]
    other = [candidate(i, in_flight=i % 2) for i in reversed(identities)]
    here = one[choose(500, one, WEIGHTS, DEFAULT_PRICES, at_home(home), first)].identity
    there = other[choose(500, other, WEIGHTS, DEFAULT_PRICES, at_home(home), first)].identity
    assert here == there


def test_homes_of_many_prefixes_are_spread_evenly() -> None:
    rng = random.Random(1)
    candidates = [candidate(rng.getrandbits(64)) for _ in range(8)]
    counts = [0] * 8
    for _ in range(8000):
        counts[choose(500, candidates, WEIGHTS, DEFAULT_PRICES, at_home(rng.getrandbits(64)), first)] += 1
    assert min(counts) > 850
    assert max(counts) < 1150


def test_home_moves_only_for_the_prefixes_of_a_replica_that_is_gone() -> None:
    rng = random.Random(2)
    candidates = [candidate(rng.getrandbits(64)) for _ in range(5)]
    for _ in range(300):
        home = rng.getrandbits(64)
        before = choose(500, candidates, WEIGHTS, DEFAULT_PRICES, at_home(home), first)
        if before != 4:
            assert choose(500, candidates[:4], WEIGHTS, DEFAULT_PRICES, at_home(home), first) == before


def test_ties_without_a_prefix_are_broken_by_the_given_draw() -> None:
    candidates = [candidate(in_flight=1), candidate(), candidate(), candidate()]
    drawn = []
    for number in range(3):
        draw = Mock(return_value=number)
        drawn.append(choose(10, candidates, WEIGHTS, DEFAULT_PRICES, None, draw))
        draw.assert_called_once_with(3)
    assert drawn == [1, 2, 3]


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_affinity_is_a_64_bit_number(prefix: int, identity: int) -> None:
    assert 0 <= affinity(prefix, identity) < 2**64


def test_prices_follow_the_engines_step_times() -> None:
    """8 ms a step, 50 us a prompt token and 50 us a sequence, 32 at once: 64 tokens later a request is over."""
    prices = Prices.derived(0.008, 5e-5, 5e-5, 32)
    assert prices is not None
    assert prices.in_flight_tokens == pytest.approx(64)
    assert prices.seat_tokens == pytest.approx(64 * (0.008 / 32 + 5e-5) / 5e-5)


@settings(deadline=None)
@given(st.floats(0, 10), st.floats(1e-9, 1), st.floats(0, 1), st.integers(1, 8192))
def test_no_measurement_makes_prices_leave_their_bounds(
    base: float, token: float, seq: float, n: int
) -> None:
    prices = Prices.derived(base, token, seq, n)
    assert prices is not None
    assert 16 <= prices.in_flight_tokens <= 256
    assert 0 <= prices.seat_tokens <= 512


@pytest.mark.parametrize("times", [(0, 0, 0, 8), (-1, 1, 1, 8), (1, float("nan"), 1, 8), (1, 1, 1, 0)])
def test_nonsense_has_no_prices(times: tuple[float, float, float, int]) -> None:
    assert Prices.derived(*times) is None


def test_price_that_was_set_wins_over_the_derived_one() -> None:
    busy, idle = candidate(cached=900, in_flight=10), candidate()
    derived = Prices(in_flight_tokens=256)
    assert choose(1000, [busy, idle], Weights(), derived, at_home(7), first) == 1
    assert choose(1000, [busy, idle], Weights(in_flight_tokens=8), derived, at_home(7), first) == 0


def test_what_the_cheapest_lacks_first_decides_on_the_home() -> None:
    prefix = Prefix([11, 12, 13], 64.0)
    assert [prefix.home(cached) for cached in (0, 64, 130, 192, 1000)] == [11, 12, 13, 13, 13]
    assert Prefix([11, 12, 13], 64.0, home_block=1).home(0) == 12


def test_prefix_that_comes_again_waits_for_its_home_and_a_new_one_does_not() -> None:
    candidates = [candidate(1), candidate(2, queued=900)]
    home = 0
    while affinity(home, 2) < affinity(home, 1):
        home += 1
    new, again = Prefix([home], 64.0), Prefix([home], 64.0, returning=True)
    assert choose(1000, candidates, WEIGHTS, DEFAULT_PRICES, new, first) == 0
    assert choose(1000, candidates, WEIGHTS, DEFAULT_PRICES, again, first) == 1
    too_long = [candidate(1), candidate(2, queued=1100)]
    assert choose(1000, too_long, WEIGHTS, DEFAULT_PRICES, again, first) == 0
    too_busy = [candidate(1), candidate(2, in_flight=30)]
    assert choose(4000, too_busy, WEIGHTS, DEFAULT_PRICES, again, first) == 0
