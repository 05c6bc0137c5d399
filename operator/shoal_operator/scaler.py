"""The autoscaler's hand: what was observed goes into autoscale.decide(), what it says goes through /scale.

Keeps what decide() remembers of each deployment, which a restart forgets on purpose; decides nothing itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shoal_api.kube import Object
from shoal_api.status import AutoscalingStatus
from shoal_operator.autoscale import Decision, Memory, Observation, decide
from shoal_operator.cluster import Cluster
from shoal_operator.load_metric import ReplicaLoad
from shoal_operator.scaling_status import reported
from shoal_operator.tally import tally
from shoal_operator.timestamps import rfc3339
from shoal_operator.world import Replica, World

PERIOD_S = 2.0


@dataclass(frozen=True, slots=True)
class Scaled:
    """What a look came to: the decision, whether spec.replicas was written, and status.autoscaling after it."""

    decision: Decision
    written: bool
    status: dict[str, Any]


class Scaler:
    """`now` is monotonic, unlike World.now_s: windows must not move with the wall clock."""

    def __init__(self, cluster: Cluster, now: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._now = now
        self._memory: dict[str, Memory] = {}
        self._heard_s: dict[str, float] = {}

    def forget(self, uid: str) -> None:
        """The deployment is gone, or is not scaled any more."""
        self._memory.pop(uid, None)
        self._heard_s.pop(uid, None)

    async def scale(self, found: Object, world: World, revision: str) -> Scaled:
        """Decide, and write spec.replicas if it differs. Raises ApiError; nothing is remembered then."""
        policy = world.deployment.spec.autoscaling
        assert policy is not None
        uid, now_s = world.deployment.metadata.uid, self._now()
        if world.routers_fresh:
            self._heard_s[uid] = now_s
        previous: Mapping[str, Any] = found.get("status", {})
        observation = observe(world, revision, previous, self._heard_s.get(uid, float("-inf")))
        decision, memory = decide(policy, observation, self._memory.get(uid, Memory()), now_s)
        before = observation.replicas
        if decision.replicas != before:
            await self._cluster.scale(found, decision.replicas)
        self._memory[uid] = memory
        shown = previous.get("autoscaling")
        status = AutoscalingStatus.model_validate(shown) if shown else None
        after = reported(status, decision, before, rfc3339(world.now_s))
        return Scaled(
            decision,
            decision.replicas != before,
            after.model_dump(by_alias=True, mode="json", exclude_none=True, exclude_defaults=True),
        )


def observe(world: World, revision: str, previous: Mapping[str, Any], heard_s: float) -> Observation:
    """The world as the autoscaler sees it; `heard_s`: when a router last spoke, on the autoscaler's own clock."""
    ready = [each for each in world.replicas if each.ready and not _ends(each)]
    pending = [each for each in world.replicas if not each.ready and not _ends(each)]
    spec = world.deployment.spec
    return Observation(
        replicas=spec.replicas,
        data_s=heard_s,
        ready=len(ready),
        pending=max(len(pending), spec.replicas - len(ready)),
        loads=tuple(
            ReplicaLoad(t.running, t.waiting, t.kv_usage, t.max_num_seqs, t.report_age_s)
            for t in (each.traffic for each in ready)
        ),
        held=world.demand.held,
        idle_s=world.demand.idle_s,
        rollout_running=not tally(world, revision, previous).rollout_done,
        routers_fresh=world.routers_agree,
        unschedulable=any(each.unschedulable_since_s is not None for each in world.replicas),
        max_num_seqs=spec.engine.max_num_seqs or 0,
    )


def _ends(replica: Replica) -> bool:
    return replica.draining_since_s is not None or replica.terminating_since_s is not None
