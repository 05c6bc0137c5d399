"""What the autoscaler reports: few writes, the last five changes, and why it cannot scale."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from shoal_api.lifecycle import Autoscaling
from shoal_api.status import AutoscalingStatus
from shoal_operator.autoscale import Decision, Observation
from shoal_operator.load_metric import ReplicaLoad
from shoal_operator.scaling_status import event_reason, reported, scaling_facts

POLICY = Autoscaling(max_replicas=4)
GOOD = Observation(2, 0.0, ready=2, loads=(ReplicaLoad(), ReplicaLoad()))
STAY = Decision(2, "fits", metric=0.5, wanted=2)


def at(seconds: float) -> str:
    return (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).isoformat()


def test_small_or_early_changes_of_the_metric_write_nothing() -> None:
    first = reported(None, STAY, 2, at(0))
    assert (first.last_metric, first.last_metric_time) == (0.5, at(0))
    assert reported(first, Decision(2, "", metric=0.53), 2, at(600)) is first
    assert reported(first, Decision(2, "", metric=5.0), 2, at(59)) is first
    assert reported(first, Decision(2, ""), 2, at(600)) is first
    assert reported(first, Decision(2, "", metric=1.2345), 2, at(60)).last_metric == 1.2


def test_the_last_five_changes_are_kept_newest_first() -> None:
    status: AutoscalingStatus | None = None
    for n in range(7):
        status = reported(status, Decision(n + 1, f"step {n}", metric=0.7), n, at(n))
    assert status is not None
    assert [(step.from_, step.to) for step in status.history] == [(6, 7), (5, 6), (4, 5), (3, 4), (2, 3)]
    assert (status.last_scale_time, status.history[0].reason) == (at(6), "step 6")
    assert AutoscalingStatus.model_validate(status.model_dump(by_alias=True)) == status


@pytest.mark.parametrize(
    ("observation", "decision", "conflicting", "active", "able"),
    [
        (GOOD, STAY, None, "ValidMetrics", "ReadyToScale"),
        (Observation(2, -60.0), STAY, None, "StaleMetrics", "ReadyToScale"),
        (Observation(2, 0.0, routers_fresh=False), STAY, None, "StaleMetrics", "ReadyToScale"),
        (Observation(2, 0.0, ready=2), STAY, None, "FailedGetMetrics", "ReadyToScale"),
        (Observation(2, 0.0, unschedulable=True), STAY, None, "ValidMetrics", "InsufficientCapacity"),
        (GOOD, Decision(4, "", wanted=9), None, "ValidMetrics", "TooManyReplicas"),
        (GOOD, STAY, "HorizontalPodAutoscaler x", "ValidMetrics", "ConflictingAutoscaler"),
    ],
)
def test_conditions(
    observation: Observation, decision: Decision, conflicting: str | None, active: str, able: str
) -> None:
    facts = scaling_facts(POLICY, observation, decision, 0.0, conflicting)
    assert [fact.reason for fact in facts] == [active, able]
    good = ("ValidMetrics", "ReadyToScale")
    assert [fact.status == "True" for fact in facts] == [fact.reason in good for fact in facts]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(2, 2, None), (0, 3, "WokenUp"), (1, 0, "ScaledToZero"), (3, 2, "Scaled")],
)
def test_events(before: int, after: int, expected: str | None) -> None:
    assert event_reason(before, after) == expected
