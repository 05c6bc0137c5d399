"""What the autoscaler reports: status.autoscaling and the facts of its two conditions. Pure; decides and writes nothing.

A status that changes each tick would cost a write each tick: the metric is rounded, and shown anew once a minute
at most unless the number of replicas changed. Messages carry no number that moves with the load.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from shoal_api.lifecycle import Autoscaling
from shoal_api.status import AutoscalingStatus, ConditionType, EventReason, Reason, ScalingDecision
from shoal_operator.autoscale import Decision, Observation, is_stale, reporting

HISTORY = 5
REFRESH_S = 60.0
_NOTICEABLE = 0.1  # relative change of the metric that is worth a write


@dataclass(frozen=True, slots=True)
class Fact:
    """A condition without its times."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str = ""


def reported(
    status: AutoscalingStatus | None, decision: Decision, before: int, time: str
) -> AutoscalingStatus:
    """status.autoscaling after `decision` changed `before` replicas (or did not) at `time` (RFC 3339, wall clock)."""
    status = status or AutoscalingStatus()
    scaled = decision.replicas != before
    changes: dict[str, object] = {}
    if decision.metric is not None and (scaled or _worth_showing(status, decision.metric, time)):
        changes |= {"last_metric": float(f"{decision.metric:.2g}"), "last_metric_time": time}
    if scaled:
        step = ScalingDecision.model_validate(
            {"time": time, "from": before, "to": decision.replicas, "reason": decision.reason}
        )
        changes |= {"last_scale_time": time, "history": (step, *status.history)[:HISTORY]}
    return status.model_copy(update=changes) if changes else status


def event_reason(before: int, after: int) -> EventReason | None:
    """The event that a change of the number of replicas is worth."""
    if before == after:
        return None
    return "WokenUp" if before == 0 else "ScaledToZero" if after == 0 else "Scaled"


def scaling_facts(
    policy: Autoscaling,
    observation: Observation,
    decision: Decision,
    now_s: float,
    conflicting_autoscaler: str | None = None,
) -> tuple[Fact, Fact]:
    """ScalingActive and AbleToScale. `now_s` is decide()'s clock."""
    return _active(policy, observation, now_s), _able(policy, observation, decision, conflicting_autoscaler)


def _active(policy: Autoscaling, observation: Observation, now_s: float) -> Fact:
    if is_stale(policy, observation, now_s):
        text = "No router has reported within metricsStaleSeconds; the number of replicas is held."
        return Fact("ScalingActive", "False", "StaleMetrics", text)
    if not observation.routers_fresh:
        return Fact("ScalingActive", "False", "StaleMetrics", "A router is not heard; no replica is removed.")
    if len(reporting(policy, observation)) < observation.ready:
        text = "A ready replica reports no load; no replica is removed."
        return Fact("ScalingActive", "False", "FailedGetMetrics", text)
    return Fact("ScalingActive", "True", "ValidMetrics")


def _able(policy: Autoscaling, observation: Observation, decision: Decision, conflicting: str | None) -> Fact:
    if conflicting:
        text = f"{conflicting} scales this deployment too; remove it or set autoscaling.enabled to false."
        return Fact("AbleToScale", "False", "ConflictingAutoscaler", text)
    if observation.unschedulable:
        text = "A replica finds no node with room; no more are added until it does."
        return Fact("AbleToScale", "False", "InsufficientCapacity", text)
    if decision.replicas == policy.max_replicas and (decision.wanted or 0) > policy.max_replicas:
        text = f"Load asked for more than maxReplicas {policy.max_replicas}; raise it to serve with less waiting."
        return Fact("AbleToScale", "False", "TooManyReplicas", text)
    return Fact("AbleToScale", "True", "ReadyToScale")


def _worth_showing(status: AutoscalingStatus, metric: float, time: str) -> bool:
    if status.last_metric is None or status.last_metric_time is None:
        return True
    age = datetime.fromisoformat(time) - datetime.fromisoformat(status.last_metric_time)
    larger = max(abs(metric), abs(status.last_metric))
    return age.total_seconds() >= REFRESH_S and abs(metric - status.last_metric) > _NOTICEABLE * larger
