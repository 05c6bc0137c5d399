"""What became different between two statuses of one LLMDeployment, as events for the user. Pure; cluster.py posts.

Events of single pods (PodCreated, DrainStarted, ...) come from the actions themselves, not from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from shoal_api.status import EventReason

EventType = Literal["Normal", "Warning"]
Event = tuple[EventType, EventReason, str]

# (condition, its reason) that begins -> the event.
BY_REASON: Final[Mapping[tuple[str, str], tuple[EventType, EventReason]]] = {
    ("Progressing", "RolloutComplete"): ("Normal", "RolloutCompleted"),
    ("Progressing", "ProgressDeadlineExceeded"): ("Warning", "RolloutStalled"),
    ("AbleToScale", "InsufficientCapacity"): ("Warning", "InsufficientGPU"),
    ("ScalingActive", "StaleMetrics"): ("Warning", "MetricsStale"),
    ("ScalingActive", "FailedGetMetrics"): ("Warning", "MetricsStale"),
    ("ModelCached", "DownloadFailed"): ("Warning", "ModelDownloadFailed"),
    ("ModelCached", "Cached"): ("Normal", "ModelDownloadCompleted"),
}


def events_of(previous: Mapping[str, Any], new: Mapping[str, Any]) -> list[Event]:
    """Events for what differs, in a fixed order; none for equal statuses. `previous` is {} for a new object."""
    return [*_rollout(previous, new), *_scaling(previous, new), *_conditions(previous, new)]


def _rollout(previous: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Event]:
    wanted, before = new.get("updateRevision", ""), previous.get("updateRevision", "")
    if wanted != before:
        words = f"revision {wanted} replaces {before}" if before else f"first revision {wanted}"
        yield "Normal", "RolloutStarted", words


def _scaling(previous: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Event]:
    """A new object has not been scaled, and of one that cannot be read nobody knows."""
    after, before = new.get("desiredReplicas"), previous.get("desiredReplicas")
    if before is None or after is None or before == after:
        return
    reason: EventReason = "ScaledToZero" if after == 0 else "WokenUp" if before == 0 else "Scaled"
    yield "Normal", reason, f"from {before} to {after} replicas{_why(previous, new)}"


def _why(previous: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The autoscaler's reason, if its last decision is this change."""
    history = (new.get("autoscaling") or {}).get("history") or [{}]
    last = history[0]
    is_this = last.get("to") == new["desiredReplicas"] and last.get("from") == previous["desiredReplicas"]
    return f": {last['reason']}" if is_this and last.get("reason") else ""


def _conditions(previous: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Event]:
    before = {each["type"]: each for each in previous.get("conditions") or ()}
    for condition in new["conditions"]:
        old = before.get(condition["type"], {})
        if condition["type"] == "SpecAccepted" and condition["status"] == "False":
            if (old.get("reason"), old.get("message")) != (condition["reason"], condition["message"]):
                yield "Warning", "SpecRejected", condition["message"]
        elif condition["type"] == "ModelCached" and _begins_to_load(previous, new):
            yield "Normal", "ModelDownloadStarted", condition["message"]
        elif condition["reason"] != old.get("reason"):
            event = BY_REASON.get((condition["type"], condition["reason"]))
            if event:
                yield *event, condition["message"]


def _begins_to_load(previous: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    loading = ("Downloading", "Verifying")
    states = [(each.get("cache") or {}).get("state") for each in (previous, new)]
    return states[1] in loading and states[0] not in loading
