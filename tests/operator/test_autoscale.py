"""The autoscaler's decision: tables for single ticks, properties over whole histories."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_api.lifecycle import Autoscaling, ScaleDown, ScaleToZero, ScaleUp
from shoal_operator.autoscale import Decision, Memory, Observation, decide
from shoal_operator.load_metric import ReplicaLoad
from shoal_operator.load_window import LoadWindow

SLOTS = 10  # at the default target of 0.6 a replica carries 6 requests
WINDOW_S = 60
TICK_S = 2.0

QUICK_DOWN = ScaleDown(stabilization_window_s=WINDOW_S, max_replicas_per_step=1, period_s=4)
QUICK_UP = ScaleUp(stabilization_window_s=0, max_replicas_per_step=4, period_s=4)
POLICY = Autoscaling(max_replicas=20, scale_up=QUICK_UP, scale_down=QUICK_DOWN)
ZERO = POLICY.model_copy(update={"min_replicas": 0, "scale_to_zero": ScaleToZero(idle_s=100)})


def loads_of(work: int, ready: int) -> tuple[ReplicaLoad, ...]:
    """The work spread over replicas: what does not run waits."""
    shares = [work // ready + (i < work % ready) for i in range(ready)]
    return tuple(ReplicaLoad(min(n, SLOTS), max(0, n - SLOTS), n / 100, SLOTS) for n in shares)


def seen(work: int, replicas: int, now_s: float, **more: object) -> Observation:
    """All replicas ready and reporting, unless `more` says otherwise."""
    loads = loads_of(work, replicas) if replicas else ()
    usual = Observation(replicas, now_s, ready=replicas, loads=loads, idle_s=0.0 if work else 1e6)
    return replace(usual, **more)  # type: ignore[arg-type]


@dataclass
class Run:
    """A deployment whose replicas are ready at once. `sizes` has one entry per tick."""

    policy: Autoscaling = POLICY
    replicas: int = 1
    now_s: float = 1000.0
    memory: Memory = field(default_factory=Memory)
    sizes: list[int] = field(default_factory=list)
    last: Decision | None = None

    def tick(self, work: int = 0, **more: object) -> Decision:
        observation = seen(work, self.replicas, self.now_s, **more)
        self.last, self.memory = decide(self.policy, observation, self.memory, self.now_s)
        self.replicas = self.last.replicas
        self.sizes.append(self.replicas)
        self.now_s += TICK_S
        return self.last

    def ticks(self, seconds: float, work: int = 0, **more: object) -> list[int]:
        return [self.tick(work, **more).replicas for _ in range(math.ceil(seconds / TICK_S))]


def watched(replicas: int, policy: Autoscaling = POLICY) -> Run:
    """A run that has seen a whole window of just the right load, so that it may go down after one more."""
    run = Run(policy, replicas)
    run.ticks(WINDOW_S + TICK_S, work=6 * replicas)
    assert run.replicas == replicas
    return run


@pytest.mark.parametrize(
    ("metric", "target", "load", "held", "expected"),
    [
        pytest.param("WorkInSystem", None, ReplicaLoad(10, 8, 0.0, SLOTS), 0, 3, id="running and waiting"),
        pytest.param("WorkInSystem", 0.9, ReplicaLoad(10, 8, 0.0, SLOTS), 0, 2, id="own target"),
        pytest.param("WorkInSystem", None, ReplicaLoad(6, 0, 0.0, SLOTS), 6, 2, id="held counts"),
        pytest.param("QueueDepth", None, ReplicaLoad(10, 4, 0.0, SLOTS), 2, 3, id="waiting and held"),
        pytest.param("RunningRequests", None, ReplicaLoad(10, 9, 0.0, SLOTS), 0, 2, id="running only"),
        pytest.param("RunningRequests", 2.0, ReplicaLoad(8, 9, 0.0, 0), 0, 4, id="needs no capacity"),
        pytest.param("KVUsage", 0.5, ReplicaLoad(1, 0, 0.9, SLOTS), 0, 2, id="share of blocks"),
        pytest.param("WorkInSystem", None, ReplicaLoad(10, 90, 0.0, SLOTS), 0, 5, id="a step at a time"),
        pytest.param("WorkInSystem", None, ReplicaLoad(10, 90, 0.0, 0), 0, 1, id="capacity unknown: stays"),
    ],
)
def test_what_one_loaded_replica_asks_for(
    metric: str, target: float | None, load: ReplicaLoad, held: int, expected: int
) -> None:
    policy = POLICY.model_copy(update={"metric": metric, "target_value": target})
    observation = Observation(1, 0.0, ready=1, loads=(load,), held=held)
    assert decide(policy, observation, Memory(), 0.0)[0].replicas == expected


def test_a_tenth_beside_the_target_changes_nothing() -> None:
    assert Run(replicas=10).tick(work=66).replicas == 10
    assert Run(replicas=10).tick(work=67).replicas == 12


def test_steps_up_are_bounded_per_period() -> None:
    assert Run().ticks(10, work=120) == [5, 5, 9, 9, 13]


def test_a_peak_shorter_than_the_window_adds_nothing() -> None:
    patient = POLICY.model_copy(update={"scale_up": ScaleUp(stabilization_window_s=20)})
    run = watched(2, patient)
    assert set(run.ticks(18, work=60)) == {2}
    run.tick(work=12)
    assert set(run.ticks(18, work=60)) == {2}
    assert run.ticks(4, work=60)[-1] == 6


def test_a_dip_before_a_peak_removes_nothing() -> None:
    run = watched(4, POLICY.model_copy(update={"scale_up": ScaleUp(stabilization_window_s=20)}))
    assert [run.tick(work).replicas for work in (6, 60)] == [4, 4]


def test_a_restart_in_a_peak_adds_nothing_within_the_window() -> None:
    run = Run(POLICY.model_copy(update={"scale_up": ScaleUp(stabilization_window_s=20)}))
    assert set(run.ticks(20, work=12)) == {1}
    assert run.tick(work=12).replicas == 2


def test_goes_down_one_by_one_after_the_window() -> None:
    run = watched(4)
    assert set(run.ticks(WINDOW_S - TICK_S, work=6)) == {4}
    holds = [run.tick(work=6).hold for _ in range(4)]
    assert holds == [None, "StepLimit", None, "StepLimit"]
    assert run.ticks(6, work=6)[-1] == 1
    assert all(before - after <= 1 for before, after in zip(run.sizes, run.sizes[1:], strict=False))


@pytest.mark.parametrize(
    ("more", "hold"),
    [
        ({"rollout_running": True}, "Rollout"),
        ({"pending": 1}, "Pending"),
        ({"routers_fresh": False}, "StaleMetrics"),
        ({"ready": 2, "loads": loads_of(1, 1)}, "MissingReports"),
        ({"loads": (ReplicaLoad(0, 0, 0.0, SLOTS, -1.0),) * 4}, None),  # each counts as at its target
        ({"data_s": 0.0}, "StaleMetrics"),
    ],
    ids=["rollout", "pending", "a router is not heard", "some do not report", "never reported", "old data"],
)
def test_never_down_while(more: dict[str, object], hold: str | None) -> None:
    run = watched(4)
    run.ticks(WINDOW_S - 2 * TICK_S, work=0)
    assert set(run.ticks(3 * WINDOW_S, work=0, **more)) == {4}
    assert run.last is not None
    assert run.last.hold == hold


def test_old_data_adds_nothing_either() -> None:
    assert Run().tick(work=100, data_s=1000.0 - 60).replicas == 1
    assert Run().tick(work=100, data_s=1000.0 - 59).replicas == 5


def test_after_a_gap_in_the_data_a_whole_window_is_watched_again() -> None:
    run = watched(4)
    run.ticks(2 * WINDOW_S, work=0, data_s=0.0)
    assert set(run.ticks(WINDOW_S, work=0)) == {4}
    assert run.ticks(2 * TICK_S, work=0)[-1] == 3


def test_nothing_is_added_while_a_replica_finds_no_node() -> None:
    decision = Run().tick(work=100, unschedulable=True)
    assert (decision.replicas, decision.hold) == (1, "InsufficientCapacity")


def test_replicas_without_a_report_count_as_idle_when_going_up() -> None:
    run = Run(replicas=4)
    assert run.tick(loads=loads_of(20, 1)).replicas == 4
    assert run.tick(loads=loads_of(30, 1)).replicas == 5


def test_the_last_replica_goes_when_idle_and_comes_back_for_held_requests() -> None:
    run = Run(ZERO)
    run.ticks(40, work=3)  # and then the routers forget when: what was seen here counts
    assert set(run.ticks(98, work=0)) == {1}
    assert run.tick(work=0).replicas == 0
    assert set(run.ticks(20, work=0)) == {0}
    decision = run.tick(held=50)
    assert (decision.replicas, decision.reason) == (9, "50 held requests woke it up.")  # ceil(50 / 6)


def test_the_time_in_which_the_first_replica_loads_is_not_idle_time() -> None:
    run = Run(ZERO)
    assert set(run.ticks(200, ready=0, pending=1, loads=())) == {1}
    assert set(run.ticks(98, work=0)) == {1}
    assert run.tick(work=0).replicas == 0


@pytest.mark.parametrize(
    ("policy", "idle_s"),
    [(POLICY, 1e6), (ZERO, 99.0), (ZERO, None)],
    ids=["minReplicas 1", "not idle for long", "unknown"],
)
def test_the_last_replica_stays(policy: Autoscaling, idle_s: float | None) -> None:
    assert set(Run(policy).ticks(300, work=0, idle_s=idle_s)) == {1}


def test_a_wake_counts_one_replica_while_its_capacity_is_unknown() -> None:
    wake = Observation(0, 0.0, held=50)
    assert decide(ZERO, wake, Memory(), 0.0)[0].replicas == 1
    assert decide(ZERO, replace(wake, max_num_seqs=SLOTS), Memory(), 0.0)[0].replicas == 9
    small = ZERO.model_copy(update={"max_replicas": 3})
    bounded = decide(small, replace(wake, max_num_seqs=SLOTS), Memory(), 0.0)[0]
    assert (bounded.replicas, bounded.reason) == (3, "50 held requests woke it up; maxReplicas is 3.")


@pytest.mark.parametrize("more", [{"data_s": 0.0}, {"rollout_running": True}, {"unschedulable": True}])
def test_bounds_hold_whatever_else_is_wrong(more: dict[str, object]) -> None:
    policy = POLICY.model_copy(update={"min_replicas": 3, "max_replicas": 5})
    assert Run(policy, 8).tick(work=0, **more).replicas == 5
    assert Run(policy, 0).tick(work=0, **more).replicas == 3


# Properties


@given(load=st.integers(0, 200), start=st.integers(1, 20))
def test_a_constant_load_ends_in_silence(load: int, start: int) -> None:
    run = Run(replicas=start)
    run.ticks(2 * WINDOW_S + 20 * 4, work=load)
    settled = run.replicas
    assert set(run.ticks(2 * WINDOW_S, work=load)) == {settled}
    assert settled * 6 * 1.1 + 1e-6 >= min(load, 20 * 6)


@given(before=st.integers(0, 110), after=st.integers(0, 110))
def test_a_step_overshoots_by_one_at_most(before: int, after: int) -> None:
    run = Run(replicas=max(1, math.ceil(before / 6)))
    run.ticks(WINDOW_S, work=before)
    run.sizes.clear()
    run.ticks(3 * WINDOW_S, work=after)
    low, high = sorted((before, after))
    assert max(run.sizes) <= max(1, math.ceil(high / 6)) + 1
    assert min(run.sizes) >= max(1, math.floor(low / 6 / 1.1))


TICKS = st.lists(
    st.fixed_dictionaries(
        {
            "work": st.integers(0, 300),
            "held": st.integers(0, 30),
            "pending": st.sampled_from([0, 0, 0, 1]),
            "rollout_running": st.sampled_from([False, False, False, True]),
            "routers_fresh": st.sampled_from([True, True, True, False]),
            "unschedulable": st.sampled_from([False, False, False, True]),
        }
    ),
    max_size=60,
)


@given(
    ticks=TICKS,
    low=st.integers(0, 4),
    more=st.integers(0, 10),
    start=st.integers(0, 20),
    up_window_s=st.sampled_from([0, 5, 20]),
)
def test_never_outside_the_bounds_nor_down_on_a_guess(
    ticks: list[dict[str, int]], low: int, more: int, start: int, up_window_s: int
) -> None:
    policy = POLICY.model_copy(
        update={
            "min_replicas": low,
            "max_replicas": max(1, low + more),
            "scale_up": ScaleUp(stabilization_window_s=up_window_s),
            "scale_down": ScaleDown(stabilization_window_s=4, period_s=1),
        }
    )
    run = Run(policy, start)
    for tick in ticks:
        before = run.replicas
        after = run.tick(**tick).replicas
        assert policy.min_replicas <= after <= policy.max_replicas
        guess = tick["pending"] or tick["rollout_running"] or not tick["routers_fresh"]
        if guess and before <= policy.max_replicas:
            assert after >= before
        if tick["unschedulable"] and before >= max(1, policy.min_replicas):
            assert after <= before


@given(ticks=TICKS, work=st.integers(0, 300), extra=st.integers(0, 50), held=st.integers(0, 50))
def test_more_demand_never_means_fewer_replicas(
    ticks: list[dict[str, int]], work: int, extra: int, held: int
) -> None:
    run = Run(ZERO, replicas=3)
    for tick in ticks:
        run.tick(**tick)
    less, more = (
        decide(ZERO, seen(w, run.replicas, run.now_s, held=h), run.memory, run.now_s)[0].replicas
        for w, h in ((work, held), (work + extra, held + extra))
    )
    assert less <= more


@given(ticks=TICKS, restart_at=st.integers(0, 60))
def test_a_restart_never_removes_a_replica_within_the_window(
    ticks: list[dict[str, int]], restart_at: int
) -> None:
    run = Run(ZERO, replicas=5)
    for tick in ticks[:restart_at]:
        run.tick(**tick)
    run.memory = Memory()
    size = run.replicas
    assert set(run.ticks(WINDOW_S, work=0)) == {size}


@given(held=st.integers(1, 500), fresh=st.booleans(), rollout=st.booleans())
def test_held_requests_wake_at_once(held: int, fresh: bool, rollout: bool) -> None:
    observation = Observation(
        0, 0.0, held=held, max_num_seqs=SLOTS, routers_fresh=fresh, rollout_running=rollout
    )
    woken = decide(ZERO, observation, Memory(), 0.0)[0].replicas
    assert woken == min(20, math.ceil(held / 6))


@given(
    wishes=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), min_size=1),
    spans=st.tuples(st.integers(0, 30), st.integers(0, 30)),
)
def test_the_window_is_exact_and_small(wishes: list[tuple[int, int]], spans: tuple[int, int]) -> None:
    window, now_s, seen_all = LoadWindow(), 0, []
    for pause_s, wish in wishes:
        now_s += pause_s
        seen_all.append((now_s, wish))
        window = window.after(now_s, wish, *spans)
        peak, valley = ([w for at, w in seen_all if now_s - at < span] or [wish] for span in spans)
        assert (window.highest, window.lowest) == (max(peak), min(valley))
    assert max(len(window.peaks), len(window.valleys)) <= 21
