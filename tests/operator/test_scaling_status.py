"""What the autoscaler reports: few writes, and the last five changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from shoal_api.status import AutoscalingStatus
from shoal_operator.autoscale import Decision
from shoal_operator.scaling_status import reported

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
