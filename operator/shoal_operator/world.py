"""What the operator has seen of one LLMDeployment, as frozen values: the input of plan() and status(). Reads nothing.

observe.py makes it from Kubernetes objects and router states. Times are seconds since the epoch, from the API server's
own timestamps where it has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from shoal_api.spec import LLMDeployment

ReplicaKind = Literal["Pod", "LeaderWorkerSet"]
Phase = Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]
DownloadState = Literal["Pending", "Downloading", "Verifying", "Ready", "Failed"]


@dataclass(frozen=True, slots=True)
class PodFailure:
    """Why a container of a pod failed last, or why it cannot start. `time_s` is when."""

    pod: str
    container: str
    reason: (
        str  # Kubernetes' or exit_codes' word: ImagePullBackOff, CrashLoopBackOff, OOMKilled, Evicted, ...
    )
    message: str
    exit_code: int | None
    time_s: float
    permanent: bool = False  # another start would end the same way
    current: bool = True  # the container is not running now because of it


@dataclass(frozen=True, slots=True)
class Traffic:
    """One replica as the routers see it: only those whose state is fresh count.

    `routable_by`, `cordoned_by` and `known_by` count routers; compare them with World.routers_expected.
    """

    routable_by: int = 0
    cordoned_by: int = 0
    known_by: int = 0  # routers that list it at all; the others send it nothing either
    in_flight: int = 0  # of all routers together, ending ones included
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    max_num_seqs: int = 0  # 0 while unknown
    report_age_s: float = -1.0  # negative: never reported


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica: a pod, or a LeaderWorkerSet seen through its leader pod."""

    name: str
    uid: str
    resource_version: str
    revision: str
    slot: int
    created_s: float
    phase: Phase = "Pending"
    kind: ReplicaKind = "Pod"
    node: str | None = None
    ip: str | None = None
    ready: bool = False  # the engine answered /ready, which it does after it has generated a token
    ready_since_s: float | None = None
    terminating_since_s: float | None = None  # it has a deletion timestamp
    termination_grace_s: float = 30.0
    draining_since_s: float | None = None  # from the drain annotation
    unschedulable_since_s: float | None = None
    unschedulable_message: str = ""
    loading: bool = False  # its model-loader is still at work
    restarts: int = 0
    failure: PodFailure | None = None
    traffic: Traffic = field(default_factory=Traffic)


@dataclass(frozen=True, slots=True)
class Revision:
    """One rendered spec, kept in a ConfigMap `<name>-<revision>`: its pods can be made again after the spec changed.

    `spec` is the whole spec block (camelCase) it was made from. `activated_s`: when it last became the wanted one.
    """

    name: str
    activated_s: float
    spec: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Demand:
    """Requests for this deployment, all fresh routers together. Unknown (None fields) without a fresh router."""

    held: int = 0  # waiting in routers
    arrivals: Mapping[str, int] = field(default_factory=dict)  # router -> requests since it started
    idle_s: float | None = None  # since any router last had a request of it


@dataclass(frozen=True, slots=True)
class Download:
    """What a model-loader says, from GET /progress of its pod."""

    pod: str
    state: DownloadState
    bytes_total: int | None = None
    bytes_done: int | None = None
    message: str = ""
    bytes_per_s: float | None = None  # None until it has been asked twice


@dataclass(frozen=True, slots=True)
class World:
    """Everything that plan() and status() know, read at `now_s`."""

    deployment: LLMDeployment
    now_s: float
    replicas: tuple[Replica, ...] = ()
    revisions: tuple[Revision, ...] = ()  # newest activated last
    routers_expected: int = 0  # router pods that are ready and not ending
    routers_fresh: int = 0  # of those, how many gave a synced state lately
    demand: Demand = field(default_factory=Demand)
    downloads: tuple[Download, ...] = ()
    prefetch_pods: tuple[Replica, ...] = ()  # they fetch a model ahead and serve nothing; see prefetch.py
    prefetching: bool = False  # the wanted revision's model is not yet where it is to be
    lws_served: bool = False  # the API server knows LeaderWorkerSet
    conflicting_autoscaler: str | None = None  # an HPA that targets this object, while autoscaling is on
    load_wants: int | None = None  # replicas that the autoscaler would have without its bounds
    rejected: tuple[str, str] | None = (
        None  # what the API server said to the pod's dry run: (Reason, message)
    )
    refusal: str = ""  # what the API server said to an action that it did not take

    @property
    def routers_agree(self) -> bool:
        """Whether what the routers say can be acted upon: there is one, and none is missing."""
        return 0 < self.routers_expected <= self.routers_fresh
