"""One holder at a time, whatever fails and however slowly."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_api.kube import ApiError
from shoal_operator.lease import DURATION_S, RENEW_DEADLINE_S, Lease, Seen, may_take, taken


class Store:
    """A Lease object with optimistic locking; `down` operators cannot reach it."""

    def __init__(self) -> None:
        self.object: dict | None = None
        self.version = 0


class Access:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.down = False

    async def read(self):
        if self.down:
            raise ApiError(0, "Unreachable", "no route")
        return self.store.object

    async def write(self, spec, read):
        if self.down:
            raise ApiError(0, "Unreachable", "no route")
        if read != self.store.object:
            raise ApiError(409, "Conflict", "changed")
        self.store.version += 1
        self.store.object = {"metadata": {"resourceVersion": str(self.store.version)}, "spec": spec}
        return self.store.object


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def now(self) -> float:
        return self.s

    def utc(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.s)


def operator(store: Store, clock: Clock, name: str) -> tuple[Lease, Access]:
    access = Access(store)
    return Lease(access, name, now=clock.now, clock=clock.utc), access


async def step(lease: Lease) -> None:
    with contextlib.suppress(ApiError):
        await lease._step()


async def test_the_first_comes_in_and_the_second_waits():
    store, clock = Store(), Clock()
    (a, _), (b, _) = operator(store, clock, "a"), operator(store, clock, "b")
    for _ in range(20):
        await step(a)
        await step(b)
        assert a.held
        assert not b.held
        clock.s += 2


async def test_a_successor_takes_over_after_the_duration_and_not_before():
    store, clock = Store(), Clock()
    (a, reach), (b, _) = operator(store, clock, "a"), operator(store, clock, "b")
    await step(a)
    await step(b)
    reach.down = True
    clock.s += DURATION_S - 0.1
    await step(b)
    assert not b.held
    assert not a.held, "it could not renew: it must have stopped before"
    clock.s += 0.2
    await step(b)
    assert b.held
    assert store.object["spec"]["leaseTransitions"] == 1


async def test_a_released_lease_is_free_at_once():
    store, clock = Store(), Clock()
    (a, _), (b, _) = operator(store, clock, "a"), operator(store, clock, "b")
    await step(a)
    await a.release()
    await step(b)
    assert b.held
    assert not a.held


async def test_release_leaves_another_holder_alone():
    store, clock = Store(), Clock()
    (a, _), (b, _) = operator(store, clock, "a"), operator(store, clock, "b")
    await step(a)
    await step(b)
    await b.release()
    assert store.object["spec"]["holderIdentity"] == "a"


def test_the_holder_stops_before_others_may_begin():
    assert RENEW_DEADLINE_S < DURATION_S


RARELY = st.integers(0, 7).map(lambda number: number == 7)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from([1, 2, 4, 9, 14, 16]), RARELY, RARELY),
        min_size=20,
        max_size=60,
    )
)
async def test_never_two_at_once(moves: list[tuple[str, int, bool, bool]]):
    store, clock = Store(), Clock()
    operators = {name: operator(store, clock, name) for name in "abc"}
    for name, pause_s, down, restart in moves:
        if restart:
            operators[name] = operator(store, clock, name + str(clock.s))
        lease, access = operators[name]
        access.down = down
        await step(lease)
        clock.s += pause_s
        assert sum(each.held for each, _ in operators.values()) <= 1


@pytest.mark.parametrize("holder", ["", None])
def test_an_empty_holder_is_none(holder):
    assert may_take(Seen({"holderIdentity": holder}, 0.0), "me", 0.0)


def test_times_are_in_kubernetes_micro_time():
    spec = taken(None, "me", datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC))
    assert spec["renewTime"] == spec["acquireTime"] == "2026-01-02T03:04:05.000006Z"
