"""The status block of the autoscaler. Pure; decides and writes nothing. Its conditions are conditions.py's.

A status that changes each tick would cost a write each tick: the metric is rounded, and shown anew once a minute
at most unless the number of replicas changed.
"""

from __future__ import annotations

from datetime import datetime

from shoal_api.status import AutoscalingStatus, ScalingDecision
from shoal_operator.autoscale import Decision

HISTORY = 5
REFRESH_S = 60.0
_NOTICEABLE = 0.1  # relative change of the metric that is worth a write


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


def _worth_showing(status: AutoscalingStatus, metric: float, time: str) -> bool:
    if status.last_metric is None or status.last_metric_time is None:
        return True
    age = datetime.fromisoformat(time) - datetime.fromisoformat(status.last_metric_time)
    larger = max(abs(metric), abs(status.last_metric))
    return age.total_seconds() >= REFRESH_S and abs(metric - status.last_metric) > _NOTICEABLE * larger
