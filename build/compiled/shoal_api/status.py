"""What the operator reports of an LLMDeployment: counts, conditions, the last failure. Decides nothing.

A condition that does not apply is absent, never False: without autoscaling no ScalingActive. There is no phase.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from shoal_api.schema import Strict
from shoal_api.workload import keyed_by

ConditionType = Literal[
    "Available",  # enough replicas that routers send requests to
    "Progressing",  # a rollout runs, or ended well
    "SpecAccepted",  # the operator can act on the spec
    "ModelCached",  # the model lies where new pods need it
    "RouterSynced",  # routers know every replica
    "ScalingActive",  # the autoscaler has metrics to decide by
    "AbleToScale",  # what it decides can be done
    "Degraded",  # some pod fails
]

Reason = Literal[
    # Available
    "EnoughReplicas",
    "NotEnoughReplicas",
    "ScaledToZero",
    "Suspended",
    # Progressing
    "NewRevision",
    "RolloutComplete",
    "ProgressDeadlineExceeded",
    "Paused",
    # SpecAccepted
    "Accepted",
    "InvalidSpec",
    "InvalidResources",
    "InvalidPodTemplate",
    "InvalidExtraArgs",
    "ModelNotMounted",
    "ModelNotSupported",
    "ModelDoesNotFit",
    "MultiNodeRequiresLWS",
    # ModelCached
    "Cached",
    "Downloading",
    "DownloadFailed",
    # RouterSynced
    "Synced",
    "WaitingForRouter",
    # ScalingActive, AbleToScale
    "ValidMetrics",
    "FailedGetMetrics",
    "StaleMetrics",
    "ReadyToScale",
    "TooManyReplicas",
    "InsufficientCapacity",
    "ConflictingAutoscaler",
    # Degraded
    "PodFailing",
    "CrashLooping",
    "ImagePullFailed",
    "OutOfMemory",
]

EventReason = Literal[
    "PodCreated",
    "PodDeleted",
    "DrainStarted",
    "DrainCompleted",
    "DrainTimedOut",
    "RolloutStarted",
    "RolloutCompleted",
    "RolloutStalled",
    "Scaled",
    "ScaledToZero",
    "WokenUp",
    "InsufficientGPU",
    "ModelDownloadStarted",
    "ModelDownloadCompleted",
    "ModelDownloadFailed",
    "SpecRejected",
    "DriftCorrected",
    "OrphanAdopted",
    "OrphanDeleted",
    "MetricsStale",
]

Text = Annotated[str, Field(max_length=32_768)]
Time = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]
Amount = Annotated[int, Field(ge=0, le=2**50)]


class Reported(Strict):
    """A part of the status. Unknown fields of a newer operator are dropped, not refused."""

    model_config = ConfigDict(extra="ignore")


class Condition(Reported):
    """One statement about the deployment, as in every Kubernetes API."""

    type: ConditionType = Field(description="What is stated.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: Reason = Field(description="Why, in one word.")
    message: Text = Field(default="", description="Why, in a sentence, and what to do about it.")
    last_transition_time: Time = Field(description="Since when status is what it is.")
    observed_generation: Amount = Field(description="The spec that it speaks of.")


class CacheStatus(Reported):
    """How far the model's way into the cache is."""

    state: Literal["Pending", "Downloading", "Verifying", "Ready", "Failed"] = Field(
        description="What happens now."
    )
    bytes_total: Amount | None = Field(default=None, description="Size of the model.")
    bytes_done: Amount | None = Field(default=None, description="Bytes that have arrived.")


class ScalingDecision(Reported):
    """One change of the number of replicas."""

    time: Time = Field(description="When.")
    from_: Amount = Field(alias="from", description="Replicas before.")
    to: Amount = Field(description="Replicas after.")
    reason: Text = Field(default="", description="Why.")


class AutoscalingStatus(Reported):
    """What the autoscaler saw and did last."""

    last_scale_time: Time | None = Field(
        default=None, description="When it last changed the number of replicas."
    )
    last_metric: float | None = Field(default=None, description="The metric, per replica.")
    last_metric_time: Time | None = Field(default=None, description="When the metric was read.")
    history: Annotated[tuple[ScalingDecision, ...], Field(max_length=5, strict=False)] = Field(
        default=(), description="The last changes, newest first."
    )


class Failure(Reported):
    """Why a pod failed last."""

    pod: Text = Field(description="Name of the pod.")
    container: Text = Field(description="Name of the container.")
    reason: Text = Field(description="In one word.")
    message: Text = Field(default="", description="The last line that the container wrote.")
    exit_code: int | None = Field(default=None, description="Exit status of the container.")
    time: Time = Field(description="When.")


class AdapterStatus(Reported):
    """Where an adapter is loaded."""

    name: Text = Field(description="Name of the adapter.")
    state: Literal["Pending", "Loading", "Ready", "Failed"] = Field(description="What happens now.")
    ready_replicas: Amount = Field(default=0, description="Replicas that serve it.")


class LLMDeploymentStatus(Reported):
    """What the operator reports."""

    observed_generation: Amount = Field(default=0, description="The spec that the counts speak of.")
    replicas: Amount = Field(default=0, description="Replicas that exist, in any state.")
    ready_replicas: Amount = Field(default=0, description="Replicas that have generated a token.")
    updated_replicas: Amount = Field(default=0, description="Replicas of the newest revision.")
    available_replicas: Amount = Field(default=0, description="Replicas ready for minReadySeconds.")
    routable_replicas: Amount = Field(default=0, description="Replicas that routers send requests to.")
    draining_replicas: Amount = Field(default=0, description="Replicas that end their last requests.")
    desired_replicas: Amount = Field(
        default=0, description="Replicas wanted, within the autoscaler's bounds."
    )
    selector: Text = Field(default="", description="Label selector of the pods, for the scale subresource.")
    current_revision: Text = Field(default="", description="Revision that served before the rollout.")
    update_revision: Text = Field(default="", description="Revision that the rollout brings.")
    collision_count: Amount = Field(default=0, description="Counts hash collisions of revisions.")
    url: Text = Field(default="", description="Base URL of the OpenAI API inside the cluster.")
    served_model: Text = Field(default="", description="Name of the model in requests.")
    cache: CacheStatus | None = Field(default=None, description="How far the model's way into the cache is.")
    autoscaling: AutoscalingStatus | None = Field(
        default=None, description="What the autoscaler saw and did last."
    )
    last_failure: Failure | None = Field(default=None, description="Why a pod failed last.")
    adapters: Annotated[tuple[AdapterStatus, ...], Field(max_length=64, strict=False)] = Field(
        default=(), description="Where adapters are loaded.", json_schema_extra=keyed_by("name")
    )
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16, strict=False)] = Field(
        default=(), description="Statements about the deployment.", json_schema_extra=keyed_by("type")
    )
