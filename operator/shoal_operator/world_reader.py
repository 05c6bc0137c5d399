"""One LLMDeployment's World, read anew from API server and routers. Decides nothing and writes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Protocol

from shoal_api.kube import Object
from shoal_api.names import ANNOTATION_ACTIVATED, LABEL_REVISION
from shoal_api.router_state_pb2 import State
from shoal_api.spec import LLMDeployment
from shoal_operator.cluster import LWS_API, Cluster
from shoal_operator.observe import replica_of, traffic_of
from shoal_operator.timestamps import seconds_of
from shoal_operator.world import Demand, Revision, World


class Routers(Protocol):
    """What the routers say; router_links.py in production."""

    @property
    def expected(self) -> int: ...

    def fresh(self) -> list[State]: ...


async def read_world(cluster: Cluster, routers: Routers, deployment: LLMDeployment, now_s: float) -> World:
    """`now_s` is seconds since the epoch. Raises ApiError."""
    namespace, name = deployment.namespace, deployment.name
    pods = await cluster.owned("Pod", namespace, name)
    maps = await cluster.owned("ConfigMap", namespace, name)
    states = [state for state in routers.fresh() if state.synced]
    uid = deployment.metadata.uid
    return World(
        deployment,
        now_s,
        replicas=tuple(
            replica_of(pod, traffic_of(states, pod["metadata"]["uid"])) for pod in pods if _owner(pod) == uid
        ),
        revisions=revisions_of(each for each in maps if _owner(each) == uid),
        routers_expected=routers.expected,
        routers_fresh=sum(not state.draining for state in states),
        demand=_demand(deployment, states),
        lws_served=deployment.pods_per_replica > 1 and await cluster.served(LWS_API),
    )


def _owner(each: Object) -> str:
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


def _demand(deployment: LLMDeployment, states: list[State]) -> Demand:
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
