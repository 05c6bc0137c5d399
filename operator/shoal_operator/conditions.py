"""What is stated of an LLMDeployment, and in which words: one function per condition, None where it does not apply.

Pure; status.py adds the times. A message tells the user what to do wherever something is to be done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

from shoal_api.acceptance import rejections
from shoal_api.exit_codes import ExitCode
from shoal_api.names import CONTAINER_ENGINE
from shoal_api.status import ConditionType, Reason
from shoal_operator.pod_failures import CRASH_LOOP, IMAGE_PULL, OOM_KILLED, WORDS
from shoal_operator.tally import Tally
from shoal_operator.world import PodFailure

DEGRADED: Final[Mapping[str, Reason]] = {
    IMAGE_PULL: "ImagePullFailed",
    CRASH_LOOP: "CrashLooping",
    OOM_KILLED: "OutOfMemory",
    WORDS[ExitCode.OUT_OF_MEMORY]: "OutOfMemory",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """A condition without its times."""

    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str


def accepted(tally: Tally) -> Statement:
    """SpecAccepted: what the API server or the manifest itself says first, then what engines found out."""
    world, deployment = tally.world, tally.world.deployment
    if world.rejected:
        reason, message = world.rejected
        return Statement("False", cast(Reason, reason), message)
    for rejection in rejections(deployment):
        return Statement("False", rejection.reason, str(rejection.problem))
    if deployment.pods_per_replica > 1 and not world.lws_served:
        pods = deployment.pods_per_replica
        message = f"one replica is {pods} pods: install LeaderWorkerSet, or let one pod have all accelerators"
        return Statement("False", "MultiNodeRequiresLWS", message)
    for replica, failure in tally.failing:
        if replica.revision == tally.revision and (verdict := _verdict(tally, failure)):
            return Statement("False", verdict, describe(failure))
    return Statement("True", "Accepted", "the spec can be served")


def _verdict(tally: Tally, failure: PodFailure) -> Reason | None:
    """What an engine that ended says of the spec; a loader speaks of a store, which is ModelCached's."""
    if failure.container != CONTAINER_ENGINE:
        return None
    if failure.exit_code == ExitCode.MODEL:
        return "ModelNotSupported"
    if failure.exit_code == ExitCode.USAGE:
        return "InvalidExtraArgs" if tally.world.deployment.spec.engine.extra_args else "InvalidSpec"
    # A revision that has served fits: then load, not the model, took the memory.
    if failure.exit_code == ExitCode.OUT_OF_MEMORY and not any(each.ready for each in tally.updated):
        return "ModelDoesNotFit"
    return None


def available(tally: Tally) -> Statement:
    if tally.world.deployment.spec.suspend:
        return Statement("False", "Suspended", "spec.suspend is set: unset it to serve again")
    if tally.desired == 0:
        return Statement("True", "ScaledToZero", "no replica is wanted now")
    count = f"routers send requests to {tally.routable} of {tally.desired} replicas"
    if tally.routable >= tally.needed:
        return Statement("True", "EnoughReplicas", count)
    return Statement("False", "NotEnoughReplicas", f"{count}, {tally.needed} needed{_obstacle(tally)}")


def progressing(tally: Tally) -> Statement:
    deadline = tally.deadline_s
    if tally.rollout_done:
        return Statement("True", "RolloutComplete", f"all replicas are of revision {tally.revision}")
    if deadline is None:
        return Statement("Unknown", "Paused", "spec.rollout.paused is set: unset it to go on")
    serving = sum(each.ready for each in tally.updated)
    count = f"{serving} of {tally.desired} replicas of revision {tally.revision} are ready"
    if tally.world.now_s >= deadline:
        patience = tally.world.deployment.spec.rollout.progress_deadline_s
        advice = "; old replicas go on serving: correct the spec, or apply the former one"
        message = f"no progress for {patience} s: {count}{_obstacle(tally)}{advice}"
        return Statement("False", "ProgressDeadlineExceeded", message)
    first = "; its model is fetched first" if tally.world.prefetching else ""
    return Statement("True", "NewRevision", f"{count}{first}{_obstacle(tally)}")


def router_synced(tally: Tally) -> Statement:
    world = tally.world
    if not world.routers_expected:
        return Statement(
            "False", "WaitingForRouter", "no router pod is ready: look at the release's router pods"
        )
    if not world.routers_agree:
        message = f"{world.routers_fresh} of {world.routers_expected} routers report to the operator"
        return Statement("False", "WaitingForRouter", message)
    unknown = [
        each.name for each in tally.alive if each.ready and each.traffic.known_by < world.routers_expected
    ]
    if unknown:
        return Statement(
            "False", "WaitingForRouter", f"not every router knows {', '.join(sorted(unknown))} yet"
        )
    return Statement("True", "Synced", "every router knows every replica")


def scaling_active(tally: Tally) -> Statement | None:
    """Absent without autoscaling, and while suspended: then nothing is decided."""
    if not _autoscales(tally) or tally.world.deployment.spec.suspend:
        return None
    world, autoscaling = tally.world, tally.world.deployment.spec.autoscaling
    if not world.routers_agree:
        message = f"{world.routers_fresh} of {world.routers_expected} routers report; replicas are held until all do"
        return Statement("False", "FailedGetMetrics", message)
    limit = autoscaling.metrics_stale_s if autoscaling else 0
    stale = [
        each.name
        for each in tally.alive
        if each.ready_since_s is not None
        and world.now_s - each.ready_since_s > limit
        and not 0 <= each.traffic.report_age_s <= limit
    ]
    if stale:
        message = f"no metrics for {limit} s from {', '.join(sorted(stale))}; replicas are held"
        return Statement("False", "StaleMetrics", message)
    return Statement("True", "ValidMetrics", "routers report the load of every replica")


def able_to_scale(tally: Tally) -> Statement | None:
    """Absent without autoscaling, unless nodes lack room: that holds up any scaling."""
    world, spec = tally.world, tally.world.deployment.spec
    if _autoscales(tally) and world.conflicting_autoscaler:
        message = f"{world.conflicting_autoscaler} scales it too: delete that, or unset spec.autoscaling"
        return Statement("False", "ConflictingAutoscaler", message)
    if tally.stuck:
        return Statement("False", "InsufficientCapacity", _no_room(tally))
    if not _autoscales(tally):
        return None
    if spec.autoscaling and max(spec.replicas, world.load_wants or 0) > spec.autoscaling.max_replicas:
        limit = spec.autoscaling.max_replicas
        message = f"more than {limit} replicas are asked for: raise spec.autoscaling.maxReplicas to have them"
        return Statement("False", "TooManyReplicas", message)
    return Statement("True", "ReadyToScale", "the number of replicas can change")


def degraded(tally: Tally) -> Statement | None:
    """Absent while no pod fails."""
    if not tally.failing:
        return None
    _, worst = max(tally.failing, key=lambda each: (each[1].time_s, each[1].pod))
    return Statement("True", DEGRADED.get(worst.reason, "PodFailing"), describe(worst))


def describe(failure: PodFailure) -> str:
    """A failure in a sentence."""
    place = f"{failure.pod}, container {failure.container}" if failure.container else failure.pod
    return f"{place}: {failure.reason}{': ' if failure.message else ''}{failure.message}"


def _obstacle(tally: Tally) -> str:
    """What is in the way, most telling first."""
    if tally.world.refusal:
        return f"; the API server refused: {tally.world.refusal}"
    statement = degraded(tally)
    if statement:
        return f"; {statement.message}"
    return f"; {_no_room(tally)}" if tally.stuck else ""


def _no_room(tally: Tally) -> str:
    first = min(tally.stuck, key=lambda each: each.name)
    advice = "add nodes or free some"
    return f"no node has room for {first.name} ({first.unschedulable_message or 'unschedulable'}): {advice}"


def _autoscales(tally: Tally) -> bool:
    autoscaling = tally.world.deployment.spec.autoscaling
    return autoscaling is not None and autoscaling.enabled


# ModelCached is model_cached.py's, which status.py adds.
STATEMENTS: Final[Mapping[ConditionType, Callable[[Tally], Statement | None]]] = {
    "Available": available,
    "Progressing": progressing,
    "SpecAccepted": accepted,
    "RouterSynced": router_synced,
    "ScalingActive": scaling_active,
    "AbleToScale": able_to_scale,
    "Degraded": degraded,
}


def statements(tally: Tally) -> dict[ConditionType, Statement]:
    """Every condition that applies."""
    found = {kind: state(tally) for kind, state in STATEMENTS.items()}
    return {kind: each for kind, each in found.items() if each is not None}
