"""One LLMDeployment's World, read anew from API server and routers. Decides nothing and writes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from shoal_api.kube import Object
from shoal_api.names import ANNOTATION_ACTIVATED, LABEL_REVISION, LABEL_ROLE, ROLE_ENGINE, ROLE_PREFETCH
from shoal_api.router_state_pb2 import State
from shoal_api.spec import LLMDeployment
from shoal_operator.cluster import LWS_API, Cluster
from shoal_operator.observe import group_replica, lws_of, replica_of, traffic_of
from shoal_operator.timestamps import seconds_of
from shoal_operator.world import Demand, Replica, Revision, Traffic, World


class Routers(Protocol):
    """What the routers say; router_links.py in production."""

    @property
    def expected(self) -> int: ...

    def fresh(self) -> list[State]: ...


async def read_world(cluster: Cluster, routers: Routers, deployment: LLMDeployment, now_s: float) -> World:
    """`now_s` is seconds since the epoch. Raises ApiError."""
    namespace, name, uid = deployment.namespace, deployment.name, deployment.metadata.uid
    # Groups before pods: a group that is new by then shows without a leader at worst, never the other way round.
    maps = [each for each in await cluster.owned("ConfigMap", namespace, name) if owner_of(each) == uid]
    revisions = revisions_of(maps)
    served = _may_have_groups(deployment, revisions) and await cluster.served(LWS_API)
    groups = await cluster.owned("LeaderWorkerSet", namespace, name) if served else []
    pods = await cluster.owned("Pod", namespace, name)
    states = [state for state in routers.fresh() if state.synced]
    return World(
        deployment,
        now_s,
        replicas=replicas_of([pod for pod in pods if role_of(pod) != ROLE_PREFETCH], groups, states, uid),
        prefetch_pods=tuple(
            prefetch_pod(pod) for pod in pods if role_of(pod) == ROLE_PREFETCH and owner_of(pod) == uid
        ),
        revisions=revisions,
        routers_expected=routers.expected,
        routers_fresh=sum(not state.draining for state in states),
        demand=demand_of(deployment, states),
        lws_served=served,
    )


def _may_have_groups(deployment: LLMDeployment, revisions: Iterable[Revision]) -> bool:
    """Whether some revision may be of several pods a replica: one without the block `parallelism` never is."""
    return deployment.pods_per_replica > 1 or any("parallelism" in each.spec for each in revisions)


def replicas_of(
    pods: Iterable[Object], groups: Iterable[Object], states: list[State], owner: str
) -> tuple[Replica, ...]:
    """One for each pod and each LeaderWorkerSet that the deployment with the UID `owner` controls.

    A group's leader pod belongs to the group's own StatefulSet. One whose group is gone is about to go too: it counts,
    because its name is taken and its requests may still run.
    """
    own, leaders = [], {}
    for pod in pods:
        if owner_of(pod) == owner:
            own.append(pod)
        elif (group := lws_of(pod)) and role_of(pod) == ROLE_ENGINE:
            leaders[group] = pod
    found = [replica_of(pod, traffic_of(states, pod["metadata"]["uid"])) for pod in own]
    for each in groups:
        leader = leaders.pop(each["metadata"]["name"], None)
        if owner_of(each) != owner:
            continue
        traffic = traffic_of(states, leader["metadata"]["uid"]) if leader else Traffic()
        found.append(group_replica(each, leader, traffic))
    left = [pod for pod in leaders.values() if pod["metadata"].get("deletionTimestamp")]
    found += [replica_of(pod, traffic_of(states, pod["metadata"]["uid"])) for pod in left]
    return tuple(found)


def prefetch_pod(pod: Object) -> Replica:
    """One that is still at work says how far it is, like a replica whose loader is."""
    found = replica_of(pod, Traffic())
    return replace(found, loading=found.phase == "Running")


def role_of(pod: Object) -> str:
    """Value of its role label, empty if there is none."""
    return str((pod["metadata"].get("labels") or {}).get(LABEL_ROLE, ""))


def owner_of(each: Object) -> str:
    """UID of its controller, empty if there is none."""
    owners = each["metadata"].get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")


def revisions_of(maps: Iterable[Object]) -> tuple[Revision, ...]:
    """From their ConfigMaps, the newest wanted last."""
    found = [
        Revision(
            each["metadata"]["labels"][LABEL_REVISION],
            seconds_of(each["metadata"].get("annotations", {}).get(ANNOTATION_ACTIVATED)) or 0.0,
            json.loads(each["data"]["spec.json"]),
        )
        for each in maps
        if LABEL_REVISION in each["metadata"].get("labels", {})
    ]
    return tuple(sorted(found, key=lambda revision: (revision.activated_s, revision.name)))


def last_activated(world: World) -> str | None:
    """The revision that was wanted last."""
    return world.revisions[-1].name if world.revisions else None


def demand_of(deployment: LLMDeployment, states: Iterable[State]) -> Demand:
    """Requests for it, of all `states` together."""
    mine = [
        (state.router, model)
        for state in states
        for model in state.models
        if (model.namespace, model.deployment) == (deployment.namespace, deployment.name)
    ]
    return Demand(
        held=sum(model.held for _, model in mine),
        arrivals={router: model.arrivals for router, model in mine},
        idle_s=min((model.idle_s for _, model in mine), default=None),
    )
