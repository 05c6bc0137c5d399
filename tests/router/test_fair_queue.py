"""Who of the waiting goes next: equal shares among tenants, floors for low bands, nobody lost, nothing left behind."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_router.drain_rate import FORGET_S, DrainRate
from shoal_router.fair_queue import FLOORS, Claim, FairQueue
from shoal_router.keys import Priority
from shoal_router.queue_bounds import FEW, Bounds, Full, Waiting, why_full
from shoal_router.waiting_line import WaitingLine

LARGEST = 1000
TENANTS = ("a", "b", "c")
TOKENS = st.integers(1, LARGEST)


def claim(tenant: str, tokens: float, band: Priority = Priority.NORMAL, size: int = 1) -> Claim:
    return Claim(tenant, band, tokens, size)


# A step is a request that comes, or None: one that goes.
STEPS = st.lists(st.none() | st.tuples(st.sampled_from(TENANTS), TOKENS), max_size=100)


@settings(max_examples=80, deadline=None)
@given(STEPS)
def test_two_tenants_get_the_same_for_as_long_as_both_wait(steps: list[tuple[str, int] | None]) -> None:
    """Within one largest request if they began together; the one that waited before may have saved up another."""
    queue: FairQueue[int] = FairQueue()
    waiting: dict[str, int] = defaultdict(int)
    since: dict[tuple[str, str], list[float]] = {}  # of two tenants that wait, what each got since both do
    together: set[tuple[str, str]] = set()
    taken_since_empty = False
    for number, step in enumerate([*steps, *[None] * len(steps)]):
        if step is not None:
            taken_since_empty &= bool(queue)
            queue.put(number, claim(*step))
            waiting[step[0]] += 1
        elif queue:
            _, taken = queue.take()
            taken_since_empty = True
            for pair, got in since.items():
                if taken.tenant in pair:
                    got[pair.index(taken.tenant)] += taken.tokens
                    assert abs(got[0] - got[1]) <= LARGEST * (1 if pair in together else 2) + 1e-6
            waiting[taken.tenant] -= 1
        for first in TENANTS:
            for second in TENANTS:
                pair = first, second
                if first >= second:
                    continue
                if not waiting[first] or not waiting[second]:
                    since.pop(pair, None)
                    together.discard(pair)
                elif pair not in since:
                    since[pair] = [0.0, 0.0]
                    if not taken_since_empty:
                        together.add(pair)


def test_tenant_with_many_requests_gets_no_more_than_one_with_few_large_ones() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(1000):
        queue.put(number, claim("many", 10))
    for number in range(1000, 1010):
        queue.put(number, claim("few", 500))
    got: dict[str, float] = defaultdict(float)
    for _ in range(505):
        taken = queue.take()[1]
        got[taken.tenant] += taken.tokens
    assert got["many"] == pytest.approx(got["few"], abs=500)


BANDED = st.lists(
    st.none() | st.tuples(st.sampled_from(TENANTS), TOKENS, st.sampled_from(Priority), st.integers(0, 99)),
    max_size=100,
)


@settings(max_examples=80, deadline=None)
@given(BANDED)
def test_band_that_waits_gets_at_least_its_floor_and_higher_ones_all_else(
    steps: list[tuple[str, int, Priority, int] | None],
) -> None:
    queue: FairQueue[int] = FairQueue()
    waiting: dict[Priority, int] = defaultdict(int)
    total: dict[Priority, float] = {}  # since the band began to wait
    got: dict[Priority, float] = {}
    for number, step in enumerate([*steps, *[None] * len(steps)]):
        if step is not None:
            queue.put(number, Claim(*step[:1], step[2], step[1], step[3]))
            waiting[step[2]] += 1
        elif queue:
            highest = min(band for band in Priority if waiting[band])
            _, taken = queue.take()
            for band in total:
                total[band] += taken.tokens
                got[band] += taken.tokens * (band is taken.band)
                assert got[band] >= FLOORS[band] * total[band] - LARGEST
            if taken.band is not highest and len(total) == 2:
                assert got[taken.band] <= FLOORS[taken.band] * total[taken.band] + 2 * LARGEST
            waiting[taken.band] -= 1
        for band in Priority:
            if not waiting[band]:
                total.pop(band, None)
            elif band not in total:
                total[band] = got[band] = 0.0


@settings(max_examples=80, deadline=None)
@given(BANDED, st.randoms(use_true_random=False))
def test_queue_loses_nobody_and_is_empty_in_the_end(
    steps: list[tuple[str, int, Priority, int] | None], rng: random.Random
) -> None:
    queue: FairQueue[int] = FairQueue()
    model: dict[int, Claim] = {}
    order: dict[tuple[str, Priority], list[int]] = defaultdict(list)
    for number, step in enumerate(steps):
        if step is not None:
            tenant, tokens, band, size = step
            model[number] = Claim(tenant, band, tokens, size)
            order[tenant, band].append(number)
            queue.put(number, model[number])
        elif model and rng.random() < 0.3:
            leaver = rng.choice(list(model))
            assert queue.remove(leaver) == model[leaver]
            order[model[leaver].tenant, model[leaver].band].remove(leaver)
            del model[leaver]
        elif model:
            item, taken = queue.take()
            own = order[taken.tenant, taken.band]
            assert item == own[0], "within a tenant, first come first served"
            if rng.random() < 0.3:
                queue.put(item, taken, back=True)
            else:
                own.pop(0)
                del model[item]
        assert dict(queue.claims) == model
        assert queue.remove(-1) is None
        for each in model.values():
            own = order[each.tenant, each.band]
            assert queue.of_tenant(each) == (len(own), sum(model[number].size for number in own))
            assert queue.tokens_of(each) == pytest.approx(sum(model[number].tokens for number in own))
    for number in list(model):
        queue.remove(number)
    assert not queue
    for band in queue._bands.values():
        assert (band.flows, band.tokens, band.owed) == ({}, 0.0, 0.0)


def test_request_that_comes_back_is_the_next_of_its_tenant_and_has_cost_it_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    for name in ("a1", "b1", "a2", "b2"):
        queue.put(name, claim(name[0], 10))
    item, taken = queue.take()
    assert item == "a1"
    queue.put(item, taken, back=True)
    assert [queue.take()[0] for _ in range(4)] == ["a1", "b1", "a2", "b2"]


@settings(max_examples=80, deadline=None)
@given(BANDED, st.sampled_from(TENANTS), TOKENS, st.sampled_from(Priority))
def test_what_goes_ahead_of_a_newcomer_is_what_was_said_when_nobody_else_comes(
    steps: list[tuple[str, int, Priority, int] | None], tenant: str, tokens: int, band: Priority
) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, step in enumerate(steps):
        if step is not None:
            queue.put(number, Claim(step[0], step[2], step[1], step[3]))
        elif queue:
            queue.take()
    newcomer = Claim(tenant, band, tokens, 1)
    said = queue.ahead(newcomer)
    queue.put(-1, newcomer)
    went = 0.0
    while (taken := queue.take())[0] != -1:
        went += taken[1].tokens
    # Each other tenant and each lower band may be a request ahead; the floor is shared by what waits in the band.
    assert went <= said + (len(TENANTS) + len(Priority)) * LARGEST
    if band is Priority.HIGH:
        lower = sum(FLOORS.values()) * went
        assert went >= said - len(TENANTS) * LARGEST - lower


def test_drain_rate_counts_only_time_in_which_somebody_waited() -> None:
    rate = DrainRate()
    assert rate.per_s(0.0) is None
    now = 0.0
    for _ in range(3):
        rate.opened(now)
        for _ in range(50):
            now += 0.1
            rate.left(10, now)
        rate.closed(now)
        now += 20.0
        assert rate.per_s(now) == pytest.approx(100, rel=0.05)
    rate.opened(now + FORGET_S)
    assert rate.per_s(now + FORGET_S) is None


def test_burst_says_nothing_about_the_rate_before_some_of_it_are_through_and_a_standstill_does() -> None:
    rate = DrainRate()
    rate.opened(0.0)
    assert rate.per_s(2.0, 10) is None, "all came together, and none is done yet"
    for _ in range(10):
        rate.left(10, 2.0)
    assert rate.per_s(2.0) == pytest.approx(50, rel=0.3)
    stands = DrainRate()
    stands.opened(0.0)
    assert stands.per_s(6.0) == 0.0


def test_drain_rate_follows_a_change_within_its_window() -> None:
    rate = DrainRate()
    rate.opened(0.0)
    for tick in range(1, 101):
        rate.left(10, tick / 10)
    for tick in range(101, 251):
        rate.left(1, tick / 10)
    assert rate.per_s(25.0) == pytest.approx(10, rel=0.7)


def drained(line: WaitingLine[int], rate_s: float, seconds: float, now: float) -> float:
    """Serve a line at a rate; returns the time after it."""
    end = now + seconds
    while line.queue and now < end:
        _, taken = line.take(now)
        now += taken.tokens / rate_s
    return now


def test_expected_wait_is_about_the_wait_there_is_and_a_polite_tenant_has_a_short_one() -> None:
    line: WaitingLine[int] = WaitingLine(DrainRate())
    for number in range(600):
        line.put(number, claim("flood", 10), 0.0)
    assert line.expected_wait_s(claim("flood", 10), 0.0) is None
    now = drained(line, 1000.0, 2.0, 0.0)
    assert line.expected_wait_s(claim("flood", 10), now) == pytest.approx(4.0, rel=0.1)
    assert (line.expected_wait_s(claim("polite", 10), now) or inf) < 0.1
    low = line.expected_wait_s(claim("low", 10, Priority.LOW), now)
    assert low is not None
    assert low < 1.0, "its floor is more than strict order would leave it"


def test_tenant_that_gets_on_slowly_is_told_so_though_little_is_ahead_of_it() -> None:
    """A low band waits for requests that are yet to come."""
    line: WaitingLine[int] = WaitingLine(DrainRate())
    now = 0.0
    for number in range(40):
        line.put(number, claim("low", 10, Priority.LOW), now)
    for number in range(40, 400):
        line.put(number, claim("high", 10, Priority.HIGH), now)
        line.take(now)
        now += 0.01
    said = line.expected_wait_s(claim("low", 10, Priority.LOW), now)
    assert said is not None
    assert said > 3 * len(line) * 10 / 1000


ROOMY = Waiting(count=2, size=20, own_count=1, own_size=10, running=4, expected_s=1.0)
BOUNDS = Bounds(count=10, size=100, wait_s=5.0)


@pytest.mark.parametrize(
    ("waiting", "bounds", "why"),
    [
        ({}, {}, None),
        ({"count": 10}, {}, Full.COUNT),
        ({"count": 5, "own_count": 5}, {}, Full.COUNT),
        ({"count": 5, "own_count": 4}, {}, None),
        ({"size": 96}, {}, Full.BYTES),
        ({"size": 55, "own_size": 41}, {}, Full.BYTES),
        ({"expected_s": 3.6}, {}, Full.WAIT),
        ({"expected_s": 3.4}, {}, None),
        ({"expected_s": 4.5}, {"wait_s": None}, None),
        ({"expected_s": None, "count": 7}, {}, None),
        ({"expected_s": None, "count": FEW}, {"count": 1000}, Full.WAIT),
        ({"expected_s": None, "count": FEW, "running": FEW + 1}, {"count": 1000}, None),
        ({}, {"count": 0}, Full.COUNT),
    ],
)
def test_bounds_hold(waiting: dict[str, float], bounds: dict[str, float], why: Full | None) -> None:
    one = claim("a", 10, size=5)
    assert why_full(replace(ROOMY, **waiting), replace(BOUNDS, **bounds), one) is why


def test_requests_without_a_tenant_may_use_every_place() -> None:
    nobody = claim("", 10, size=5)
    assert why_full(Waiting(9, 95, 9, 95, 1, 1.0), BOUNDS, nobody) is None
    assert why_full(Waiting(9, 95, 9, 95, 1, 1.0), BOUNDS, claim("a", 10, size=5)) is Full.COUNT
