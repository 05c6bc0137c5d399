"""From Kubernetes objects and router states to the World: what belongs to a deployment, and what does not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_api.kube import ApiError, Object
from shoal_api.names import ANNOTATION_ACTIVATED, LABEL_REVISION, LABEL_ROLE, LABEL_SLOT
from shoal_api.router_state_pb2 import STANDING_ROUTABLE, Endpoint, Model, State
from shoal_api.spec import LLMDeployment
from shoal_operator.observe import LABEL_LWS
from shoal_operator.world_reader import (
    demand_of,
    last_activated,
    read_world,
    replicas_of,
    revisions_of,
)

BORN = "2026-01-01T00:00:00Z"
LATER = "2026-01-01T00:10:00Z"
OWNER, REVISION = "owner-uid", "0123456789"


def metadata(name: str, owner: str = OWNER, **labels: str) -> dict[str, Any]:
    return {
        "name": name,
        "uid": f"uid-of-{name}",
        "resourceVersion": "1",
        "creationTimestamp": BORN,
        "labels": {LABEL_REVISION: REVISION, LABEL_SLOT: name.rsplit("-", 1)[-1], **labels},
        "ownerReferences": [{"uid": owner, "controller": True}] if owner else [],
    }


def pod(name: str, owner: str = OWNER) -> Object:
    return {"metadata": metadata(name, owner), "spec": {}, "status": {"phase": "Running"}}


def member(group: str, index: int, role: str = "engine") -> Object:
    """A pod of a group: its controller is a StatefulSet."""
    labels = {LABEL_LWS: group, LABEL_ROLE: role, LABEL_SLOT: group.rsplit("-", 1)[-1]}
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": LATER}
    return {
        "metadata": metadata(f"{group}-{index}", "stateful-set", **labels),
        "spec": {},
        "status": {"phase": "Running", "conditions": [ready]},
    }


def group(name: str, owner: str = OWNER) -> Object:
    return {"metadata": metadata(name, owner)}


def config_map(revision: str, activated: str | None, **spec: Any) -> Object:
    meta = {"name": f"m-{revision}", "labels": {LABEL_REVISION: revision}, "uid": revision}
    meta["annotations"] = {ANNOTATION_ACTIVATED: activated} if activated else {}
    meta["ownerReferences"] = [{"uid": OWNER, "controller": True}]
    return {"metadata": meta, "data": {"spec.json": json.dumps(spec)}}


def test_a_pod_of_somebody_else_is_no_replica():
    pods = [pod("m-r-0"), pod("m-r-1", owner="a former deployment of this name"), pod("m-r-2", owner="")]
    assert [each.name for each in replicas_of(pods, [], [], OWNER)] == ["m-r-0"]


def test_a_group_is_its_leader():
    (replica,) = replicas_of([member("m-r-3", 0), member("m-r-3", 1, "worker")], [group("m-r-3")], [], OWNER)
    assert (replica.kind, replica.name, replica.uid) == ("LeaderWorkerSet", "m-r-3", "uid-of-m-r-3-0")
    assert (replica.revision, replica.slot, replica.ready) == (REVISION, 3, True)


def test_requests_of_the_leader_are_the_groups():
    state = State(
        synced=True, endpoints=[Endpoint(uid="uid-of-m-r-0-0", standing=STANDING_ROUTABLE, in_flight=4)]
    )
    (replica,) = replicas_of([member("m-r-0", 0)], [group("m-r-0")], [state], OWNER)
    assert (replica.traffic.routable_by, replica.traffic.in_flight) == (1, 4)


def test_a_group_without_a_leader_is_a_pending_replica():
    (replica,) = replicas_of([member("m-r-0", 1, "worker")], [group("m-r-0")], [], OWNER)
    assert (replica.kind, replica.phase, replica.ready) == ("LeaderWorkerSet", "Pending", False)
    assert (replica.name, replica.uid, replica.slot) == ("m-r-0", "uid-of-m-r-0", 0)


def test_a_deleted_group_ends_before_its_pods_know():
    gone = group("m-r-0")
    gone["metadata"] |= {"deletionTimestamp": LATER}
    (replica,) = replicas_of([member("m-r-0", 0)], [gone], [], OWNER)
    assert replica.terminating_since_s is not None


def test_the_ending_leader_of_a_deleted_group_still_counts():
    ending, forgotten = member("m-r-0", 0), member("m-r-1", 0)
    ending["metadata"] |= {"deletionTimestamp": LATER, "deletionGracePeriodSeconds": 30}
    (replica,) = replicas_of([ending, forgotten], [], [], OWNER)
    assert replica.name == "m-r-0"
    assert replica.terminating_since_s is not None


def test_a_group_of_somebody_else_is_no_replica_nor_is_its_leader():
    assert replicas_of([member("m-r-0", 0)], [group("m-r-0", owner="other")], [], OWNER) == ()


@given(st.permutations(["c", "a", "b"]))
def test_the_revision_wanted_last_stands_last(order: list[str]):
    times = {"a": BORN, "b": LATER, "c": None}
    found = revisions_of(config_map(name, times[name]) for name in order)
    assert [each.name for each in found] == ["c", "a", "b"]


def test_a_map_without_a_revision_is_none():
    assert revisions_of([{"metadata": {"name": "x"}, "data": {}}]) == ()


def deployment(**spec: Any) -> LLMDeployment:
    meta = {"name": "m", "namespace": "n", "uid": OWNER}
    return LLMDeployment.parse({"metadata": meta, "spec": {"model": {"uri": "hf://a/b"}, **spec}})


def model(held: int, idle_s: float, arrivals: int = 0, name: str = "m") -> Model:
    return Model(namespace="n", deployment=name, held=held, idle_s=idle_s, arrivals=arrivals)


def test_demand_is_that_of_all_routers_together():
    states = [
        State(router="a", models=[model(2, 10.0, 5), model(9, 0.0, name="other")]),
        State(router="b", models=[model(1, 3.0, 7)]),
    ]
    demand = demand_of(deployment(), states)
    assert (demand.held, demand.idle_s, dict(demand.arrivals)) == (3, 3.0, {"a": 5, "b": 7})


def test_demand_is_unknown_without_a_router():
    assert demand_of(deployment(), []).idle_s is None


class Stored:
    """A cluster that holds what it is given, and remembers what it was asked."""

    def __init__(self, *, lws: bool = False, **kinds: list[Object]) -> None:
        self.kinds, self.lws, self.asked = kinds, lws, list[str]()

    async def owned(self, kind: str, namespace: str, name: str) -> list[Object]:
        assert (namespace, name) == ("n", "m")
        self.asked.append(kind)
        if kind == "LeaderWorkerSet" and not self.lws:
            raise ApiError(404, "NotFound", "no such kind")
        return self.kinds.get(kind, [])

    async def served(self, _: str) -> bool:
        return self.lws


class Told:
    """Routers that said this."""

    expected = 3

    def __init__(self, *states: State) -> None:
        self.states = states

    def fresh(self) -> list[State]:
        return list(self.states)


async def test_only_routers_that_listed_everything_and_stay_are_fresh():
    routers = Told(State(synced=True), State(synced=False), State(synced=True, draining=True))
    world = await read_world(Stored(), routers, deployment(), 7.0)  # type: ignore[arg-type]
    assert (world.now_s, world.routers_expected, world.routers_fresh) == (7.0, 3, 1)
    assert not world.routers_agree


@pytest.mark.parametrize(
    ("wanted", "remembered", "lws", "served"),
    [
        ({}, {}, True, False),  # nobody asks
        ({"parallelism": {"tensor": 8, "pipeline": 2}}, {}, True, True),
        ({"parallelism": {"tensor": 8, "pipeline": 2}}, {}, False, False),
        ({}, {"parallelism": {"pipeline": 2}}, True, True),
    ],
)
async def test_groups_are_looked_for_where_there_can_be_some(wanted, remembered, lws, served):
    cluster = Stored(
        lws=lws, ConfigMap=[config_map("r", BORN, **remembered)], LeaderWorkerSet=[group("m-r-0")]
    )
    world = await read_world(cluster, Told(), deployment(**wanted), 0.0)  # type: ignore[arg-type]
    assert world.lws_served == served
    assert len(world.replicas) == served
    assert last_activated(world) == "r"
    assert ("LeaderWorkerSet" in cluster.asked) == served
