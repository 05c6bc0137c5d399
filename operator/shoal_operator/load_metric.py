"""How many replicas the load asks for by itself: metric against target. Knows no history, window or limit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shoal_api.lifecycle import Autoscaling

TOLERANCE = 0.1  # share of the target within which the current number is right
_SHARE = {"WorkInSystem": 0.6, "RunningRequests": 0.5, "KVUsage": 0.7}
_QUEUE_DEPTH = 2.0


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """One ready replica that is not draining. `report_age_s` is negative if it never reported."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0  # share of its KV blocks, 0 to 1
    max_num_seqs: int = 0  # 0 while unknown
    report_age_s: float = 0.0


def work_per_replica(policy: Autoscaling, capacity: float | None) -> float | None:
    """What one replica should carry, in the unit of `amount`; None while its capacity is not known."""
    if policy.metric == "QueueDepth":
        return policy.target_value or _QUEUE_DEPTH
    if policy.metric == "KVUsage":
        return policy.target_value or _SHARE["KVUsage"]
    if policy.metric == "RunningRequests" and policy.target_value is not None:
        return policy.target_value
    return (policy.target_value or _SHARE[policy.metric]) * capacity if capacity else None


def amount(policy: Autoscaling, loads: tuple[ReplicaLoad, ...], held: int) -> float:
    """The metric of all replicas together: requests, or for KVUsage the sum of shares."""
    if policy.metric == "KVUsage":
        return sum(load.kv_usage for load in loads)
    running = sum(load.running for load in loads)
    waiting = sum(load.waiting for load in loads) + held
    return float({"RunningRequests": running, "QueueDepth": waiting}.get(policy.metric, running + waiting))


def replicas_for(total: float, target: float, current: int) -> int:
    """Replicas that carry `total` at `target` each; `current` if that is within the tolerance."""
    if current > 0 and abs(total / (target * current) - 1) <= TOLERANCE + 1e-9:
        return current
    return math.ceil(total / target - 1e-9)  # 6 / (0.6 * 10) is a little above 1


def wish(total: float, target: float, current: int, missing: int) -> int:
    """The wish while `missing` ready replicas do not report: idle when going up, at their target when going down."""
    at_least = replicas_for(total, target, current)
    at_most = replicas_for(total + missing * target, target, current)
    return max(at_least, min(current, at_most))


def wake_size(policy: Autoscaling, held: int, capacity: float | None) -> int:
    """Replicas to start from zero for `held` requests, before bounds; 1 while a replica's capacity is unknown."""
    if policy.metric == "KVUsage":  # held requests use no KV yet: the same share of slots stands for it
        target = (policy.target_value or _SHARE["KVUsage"]) * capacity if capacity else None
    else:
        target = work_per_replica(policy, capacity)
    return max(1, math.ceil(held / target - 1e-9)) if target else 1


def shown(policy: Autoscaling, total: float, current: int, capacity: float | None) -> float | None:
    """The metric per replica in the unit of targetValue, for status; None while it is not known."""
    if current < 1:
        return None
    if policy.metric == "WorkInSystem":
        return total / (current * capacity) if capacity else None
    return total / current
