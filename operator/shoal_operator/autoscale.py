"""The autoscaler's decision: how many replicas, and why. Pure: the clock and the past come in as values.

Up fast, down slowly, and not down on a guess. Called only while autoscaling is enabled and the deployment is not
suspended. Bounds hold always; everything else waits for data. Writes nothing, see scaling_status.py for the report.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from shoal_api.lifecycle import Autoscaling, ScaleDown, ScaleToZero, ScaleUp
from shoal_operator import load_metric
from shoal_operator.load_metric import ReplicaLoad
from shoal_operator.load_window import LoadWindow

Hold = Literal[
    "StaleMetrics", "MissingReports", "Rollout", "Pending", "InsufficientCapacity", "Restarted", "StepLimit"
]


@dataclass(frozen=True, slots=True)
class Observation:
    """What the routers and the cluster say. All times are of the same monotonic clock as `now_s` of decide()."""

    replicas: int  # spec.replicas: what is wanted now, pending ones included
    data_s: float  # when the newest router state came
    ready: int = 0  # replicas that are ready and not draining
    pending: int = 0  # replicas that are wanted and not ready yet
    loads: tuple[ReplicaLoad, ...] = ()  # of the ready ones
    held: int = 0  # requests that wait in routers
    idle_s: float | None = None  # since the last request; None: unknown
    rollout_running: bool = False
    routers_fresh: bool = True  # every router's state is known
    unschedulable: bool = False  # some replica finds no node
    max_num_seqs: int = 0  # from the spec, until a replica says it; 0: unset


@dataclass(frozen=True, slots=True)
class Memory:
    """What decide() remembers. Empty after a restart: the current size then counts as the wish of the whole window.

    Keep the returned one only once its decision is written: a failed write used up no step.
    """

    since_s: float | None = None  # start of an unbroken observation
    seen_s: float = 0.0  # the last observation with believable data
    busy_s: float = 0.0  # the last time when it may have had a request, or was not there to take one
    capacity: float | None = None  # last known max_num_seqs of a replica
    window: LoadWindow = field(default_factory=LoadWindow)
    steps: tuple[tuple[float, int], ...] = ()  # (when, replicas added or removed), as far as periods reach


@dataclass(frozen=True, slots=True)
class Decision:
    """`replicas` to write if it differs from the observed; `hold` says what kept a wish from coming true."""

    replicas: int
    reason: str
    metric: float | None = None  # per replica, in the unit of targetValue
    hold: Hold | None = None
    wanted: int | None = None  # highest wish of the window, before bounds; None without data


def decide(
    policy: Autoscaling, observation: Observation, memory: Memory, now_s: float
) -> tuple[Decision, Memory]:
    """The wanted number of replicas at `now_s` (seconds, monotonic), and the memory for the next call."""
    decision, memory = _within_policy(policy, observation, memory, now_s)
    replicas = min(max(decision.replicas, policy.min_replicas), policy.max_replicas)
    if replicas != decision.replicas:
        bound = "minReplicas" if replicas > decision.replicas else "maxReplicas"
        reason = f"{decision.reason.removesuffix('.')}; {bound} is {replicas}."
        decision = replace(decision, replicas=replicas, reason=reason)
    return decision, _with_step(policy, memory, now_s, decision.replicas - observation.replicas)


def is_stale(policy: Autoscaling, observation: Observation, now_s: float) -> bool:
    """Whether the whole observation is too old to be believed."""
    return now_s - observation.data_s >= policy.metrics_stale_s


def reporting(policy: Autoscaling, observation: Observation) -> tuple[ReplicaLoad, ...]:
    """The ready replicas with a fresh report."""
    return tuple(load for load in observation.loads if 0 <= load.report_age_s < policy.metrics_stale_s)


def _within_policy(
    policy: Autoscaling, seen: Observation, memory: Memory, now_s: float
) -> tuple[Decision, Memory]:
    current = seen.replicas
    if is_stale(policy, seen, now_s):
        text = "Routers have said nothing lately; replicas are held."
        return Decision(current, text, hold="StaleMetrics"), memory
    loads = reporting(policy, seen)
    memory = _observed(policy, seen, loads, memory, now_s)
    if current == 0:
        return _from_zero(policy, seen, memory), memory
    total = load_metric.amount(policy, loads, seen.held)
    metric = load_metric.shown(policy, total, current, memory.capacity)
    target = load_metric.work_per_replica(policy, memory.capacity)
    missing = max(0, seen.ready - len(loads))
    wish = current if target is None else load_metric.wish(total, target, current, missing)
    up, down = policy.scale_up.stabilization_window_s, policy.scale_down.stabilization_window_s
    memory = replace(memory, window=memory.window.after(now_s, wish, down, up))
    if memory.window.lowest > current:
        decision = _up(policy, seen, memory, now_s)
    else:
        decision = _down(policy, seen, memory, now_s, missing)
    return replace(decision, metric=metric, wanted=memory.window.highest), memory


def _observed(
    policy: Autoscaling, seen: Observation, loads: tuple[ReplicaLoad, ...], memory: Memory, now_s: float
) -> Memory:
    """The memory with what this observation says by itself. After a gap it begins anew, as after a restart."""
    if memory.since_s is None or now_s - memory.seen_s >= policy.metrics_stale_s:
        memory = Memory(since_s=now_s, busy_s=now_s, capacity=memory.capacity, steps=memory.steps)
    known = [load.max_num_seqs for load in loads if load.max_num_seqs > 0]
    capacity = sum(known) / len(known) if known else memory.capacity or seen.max_num_seqs or None
    # One that loads its model for longer than idleSeconds would go as soon as it can serve.
    starting = seen.ready == 0 < seen.replicas
    working = seen.held > 0 or any(load.running + load.waiting > 0 for load in loads)
    busy = seen.idle_s is None or starting or working
    return replace(memory, seen_s=now_s, busy_s=now_s if busy else memory.busy_s, capacity=capacity)


def _from_zero(policy: Autoscaling, seen: Observation, memory: Memory) -> Decision:
    if seen.held == 0:
        return Decision(0, "No request waits.", wanted=0)
    size = load_metric.wake_size(policy, seen.held, memory.capacity)
    return Decision(size, f"{seen.held} held requests woke it up.", wanted=size)


def _up(policy: Autoscaling, seen: Observation, memory: Memory, now_s: float) -> Decision:
    wish, current, rule = memory.window.lowest, seen.replicas, policy.scale_up
    if current >= policy.max_replicas:
        return Decision(current, "Load asks for more than maxReplicas.")
    if seen.unschedulable:
        return Decision(current, "A replica finds no node; no more are added.", hold="InsufficientCapacity")
    if _watched_s(memory, now_s) < rule.stabilization_window_s:
        return Decision(current, "The autoscaler has not watched for a whole window.", hold="Restarted")
    allowed = _steps_left(rule, memory, now_s, +1)
    if allowed == 0:
        return Decision(current, "maxReplicasPerStep were added in this period.", hold="StepLimit")
    return Decision(min(wish, current + allowed), f"{policy.metric} asks for {wish} replicas.")


def _down(policy: Autoscaling, seen: Observation, memory: Memory, now_s: float, missing: int) -> Decision:
    wish, current, rule = max(1, memory.window.highest), seen.replicas, policy.scale_down
    to_zero = current == 1 and _is_idle(policy, seen, memory, now_s)
    if current <= policy.min_replicas or (wish >= current and not to_zero):
        return Decision(current, f"{policy.metric} fits {current} replicas.")
    hold = _hold_down(policy, seen, memory, now_s, missing)
    if hold is not None:
        return Decision(current, _HOLDS[hold], hold=hold)
    if to_zero:
        return Decision(0, "No request came for idleSeconds.")
    replicas = max(wish, current - _steps_left(rule, memory, now_s, -1))
    return Decision(replicas, f"{policy.metric} asked for {wish} replicas at most in the window.")


_HOLDS: dict[Hold, str] = {
    "StaleMetrics": "Not every router is heard; no replica is removed.",
    "MissingReports": "Not every ready replica reports; none is removed.",
    "Rollout": "No replica is removed during a rollout.",
    "Pending": "No replica is removed while one is starting.",
    "Restarted": "The autoscaler has not watched for a whole window; no replica is removed.",
    "StepLimit": "maxReplicasPerStep were removed in this period.",
}


def _hold_down(
    policy: Autoscaling, seen: Observation, memory: Memory, now_s: float, missing: int
) -> Hold | None:
    """What forbids to remove a replica now."""
    rule = policy.scale_down
    causes: tuple[tuple[bool, Hold], ...] = (
        (not seen.routers_fresh, "StaleMetrics"),
        (missing > 0, "MissingReports"),
        (seen.rollout_running, "Rollout"),
        (seen.pending > 0, "Pending"),
        (_watched_s(memory, now_s) < rule.stabilization_window_s, "Restarted"),
        (_steps_left(rule, memory, now_s, -1) == 0, "StepLimit"),
    )
    return next((hold for holds, hold in causes if holds), None)


def _is_idle(policy: Autoscaling, seen: Observation, memory: Memory, now_s: float) -> bool:
    """Whether it may go to zero: unused for long by the routers' word and by what was seen here."""
    if policy.min_replicas > 0 or seen.idle_s is None:
        return False
    idle_s = min(seen.idle_s, now_s - memory.busy_s)
    return idle_s >= (policy.scale_to_zero or ScaleToZero()).idle_s


def _watched_s(memory: Memory, now_s: float) -> float:
    return now_s - (now_s if memory.since_s is None else memory.since_s)


def _steps_left(rule: ScaleUp | ScaleDown, memory: Memory, now_s: float, sign: int) -> int:
    """Replicas that may still be added (`sign` 1) or removed (-1) in this period."""
    used = sum(max(0, sign * delta) for at, delta in memory.steps if now_s - at < rule.period_s)
    return max(0, rule.max_replicas_per_step - used)


def _with_step(policy: Autoscaling, memory: Memory, now_s: float, delta: int) -> Memory:
    reach_s = max(policy.scale_up.period_s, policy.scale_down.period_s)
    steps = tuple(step for step in memory.steps if now_s - step[0] < reach_s)
    return replace(memory, steps=(*steps, (now_s, delta)) if delta else steps)
