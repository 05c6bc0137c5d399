"""Blocks of the manifest that say how replicas come and go: autoscaling, rollout, drain, evictions."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from shoal_api.schema import Rule, Strict

MAX_REPLICAS = 1000

Replicas = Annotated[int, Field(ge=0, le=MAX_REPLICAS)]
Step = Annotated[int, Field(ge=1, le=MAX_REPLICAS)]
WholeSeconds = Annotated[int, Field(ge=0, le=604_800)]


class ScaleUp(Strict):
    """How quickly replicas are added."""

    stabilization_window_s: WholeSeconds = Field(
        default=0, description="The lowest wish of this long counts, so that a short peak adds nothing."
    )
    max_replicas_per_step: Step = Field(default=4, description="Most replicas added in one period.")
    period_s: Annotated[int, Field(ge=1, le=3600)] = Field(default=15, description="Length of a period.")


class ScaleDown(Strict):
    """How slowly replicas are taken away."""

    stabilization_window_s: WholeSeconds = Field(
        default=600,
        description="The highest wish of this long counts; it also spans the reuse of a cached prefix.",
    )
    max_replicas_per_step: Step = Field(default=1, description="Most replicas taken away in one period.")
    period_s: Annotated[int, Field(ge=1, le=3600)] = Field(default=60, description="Length of a period.")


class ScaleToZero(Strict):
    """When the last replica goes."""

    idle_s: Annotated[int, Field(ge=10, le=604_800)] = Field(
        default=1800, description="Time without a request after which the last replica goes."
    )


class Autoscaling(Strict):
    """How load decides the number of replicas. While it is on, only the autoscaler writes spec.replicas."""

    enabled: bool = Field(default=True, description="Whether this block has effect.")
    min_replicas: Replicas = Field(default=1, description="Fewest replicas; 0 allows scaling to zero.")
    max_replicas: Step = Field(description="Most replicas.")
    metric: Literal["WorkInSystem", "QueueDepth", "RunningRequests", "KVUsage"] = Field(
        default="WorkInSystem",
        description="What is held at targetValue; WorkInSystem is running plus waiting work.",
    )
    target_value: Annotated[float, Field(ge=0.01, le=100_000)] | None = Field(
        default=None,
        description="Per replica: a share of its capacity for WorkInSystem (0.6 if unset) and KVUsage (0.7), "
        "a number of requests for QueueDepth (2) and RunningRequests (half of maxNumSeqs).",
    )
    scale_up: ScaleUp = Field(default=ScaleUp(), description="How quickly replicas are added.")
    scale_down: ScaleDown = Field(default=ScaleDown(), description="How slowly replicas are taken away.")
    scale_to_zero: ScaleToZero | None = Field(
        default=None, description="When the last replica goes, if minReplicas is 0."
    )
    metrics_stale_s: Annotated[int, Field(ge=5, le=3600)] = Field(
        default=60, description="Age from which metrics are not believed; replicas are then held."
    )

    rules: ClassVar = (
        Rule("self.minReplicas <= self.maxReplicas", "must not be above maxReplicas", "minReplicas"),
        Rule("!has(self.scaleToZero) || self.minReplicas == 0", "needs minReplicas: 0", "scaleToZero"),
        Rule(
            "!has(self.targetValue) || self.targetValue <= 1.0"
            " || self.metric in ['QueueDepth', 'RunningRequests']",
            "is a share of the capacity for this metric, 1 at most",
            "targetValue",
        ),
    )


class Rollout(Strict):
    """How a changed spec reaches the running replicas."""

    type: Literal["RollingUpdate", "Recreate"] = Field(
        default="RollingUpdate", description="Replace replicas one after another, or all at once with a gap."
    )
    max_surge: Annotated[int, Field(ge=0, le=100)] = Field(
        default=1, description="Replicas beyond the wanted number during a rollout."
    )
    max_unavailable: Annotated[int, Field(ge=0, le=100)] = Field(
        default=0, description="Replicas that may be missing during a rollout."
    )
    on_insufficient_capacity: Literal["Wait", "ReplaceInPlace"] = Field(
        default="ReplaceInPlace",
        description="When no node has room for one more replica: wait, or drain an old replica first.",
    )
    insufficient_capacity_s: Annotated[int, Field(ge=1, le=86_400)] = Field(
        default=60, description="How long a replica is unschedulable before that happens."
    )
    progress_deadline_s: Annotated[int, Field(ge=1, le=604_800)] = Field(
        default=3600, description="Time without progress after which a rollout counts as failed."
    )
    min_ready_s: WholeSeconds = Field(default=0, description="How long a replica is ready before it counts.")
    paused: bool = Field(default=False, description="Hold the rollout where it is.")

    rules: ClassVar = (
        Rule(
            "self.maxSurge > 0 || self.maxUnavailable > 0",
            "maxSurge and maxUnavailable cannot both be 0, nothing could ever be replaced",
            "maxSurge",
        ),
    )


class Drain(Strict):
    """How a replica ends. Its pod's terminationGracePeriodSeconds is the sum of both plus 15."""

    timeout_s: Annotated[int, Field(ge=0, le=86_400)] = Field(
        default=300, description="Time that running requests get to end."
    )
    pre_stop_delay_s: Annotated[int, Field(ge=0, le=600)] = Field(
        default=5, description="Time for routers to notice before the engine refuses new requests."
    )


class DisruptionBudget(Strict):
    """What voluntary evictions, such as a node drain, may take at once."""

    max_unavailable: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = Field(
        default=1, description="Replicas that evictions may take at once."
    )
    disabled: bool = Field(default=False, description="Make no PodDisruptionBudget.")
