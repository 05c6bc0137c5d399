"""Which events two statuses give."""

from __future__ import annotations

from typing import Any

import pytest

from shoal_operator.transitions import events_of


def status(*conditions: tuple[str, str, str], **changes: Any) -> dict[str, Any]:
    made = [
        {"type": kind, "status": state, "reason": reason, "message": reason}
        for kind, state, reason in conditions
    ]
    return {"updateRevision": "a", "desiredReplicas": 1, "conditions": made} | changes


BASE = status()


@pytest.mark.parametrize(
    ("new", "kind", "reason"),
    [
        (status(updateRevision="b"), "Normal", "RolloutStarted"),
        (status(("Progressing", "True", "RolloutComplete")), "Normal", "RolloutCompleted"),
        (status(("Progressing", "False", "ProgressDeadlineExceeded")), "Warning", "RolloutStalled"),
        (status(desiredReplicas=3), "Normal", "Scaled"),
        (status(desiredReplicas=0), "Normal", "ScaledToZero"),
        (status(("AbleToScale", "False", "InsufficientCapacity")), "Warning", "InsufficientGPU"),
        (status(("SpecAccepted", "False", "InvalidSpec")), "Warning", "SpecRejected"),
        (status(("ScalingActive", "False", "StaleMetrics")), "Warning", "MetricsStale"),
        (status(("ScalingActive", "False", "FailedGetMetrics")), "Warning", "MetricsStale"),
        (status(("ModelCached", "False", "DownloadFailed")), "Warning", "ModelDownloadFailed"),
        (status(("ModelCached", "True", "Cached")), "Normal", "ModelDownloadCompleted"),
        (
            status(("ModelCached", "False", "Downloading"), cache={"state": "Downloading"}),
            "Normal",
            "ModelDownloadStarted",
        ),
    ],
)
def test_event_comes_once(new: dict[str, Any], kind: str, reason: str) -> None:
    assert [event[:2] for event in events_of(BASE, new)] == [(kind, reason)]
    assert events_of(new, new) == []


def test_waking_up_from_zero() -> None:
    assert [each[1] for each in events_of(status(desiredReplicas=0), BASE)] == ["WokenUp"]


def test_new_object_starts_a_rollout_and_is_not_scaled() -> None:
    assert events_of({}, BASE) == [("Normal", "RolloutStarted", "first revision a")]


@pytest.mark.parametrize(("decided_to", "says_why"), [(3, True), (5, False)])
def test_scaled_gives_the_reason_of_the_decision_that_it_is(decided_to: int, says_why: bool) -> None:
    decision = {"time": "t", "from": 1, "to": decided_to, "reason": "load 0.9"}
    ((_, _, message),) = events_of(BASE, status(desiredReplicas=3, autoscaling={"history": [decision]}))
    assert message.startswith("from 1 to 3 replicas")
    assert ("load 0.9" in message) == says_why


def test_another_objection_to_the_spec_is_told_the_same_is_not() -> None:
    first, second = (status(("SpecAccepted", "False", each)) for each in ("InvalidSpec", "ModelNotMounted"))
    assert [each[2] for each in events_of(first, second)] == ["ModelNotMounted"]


def test_conditions_without_an_event_give_none() -> None:
    assert events_of(BASE, status(("Available", "True", "EnoughReplicas"), ("Degraded", "True", "X"))) == []
