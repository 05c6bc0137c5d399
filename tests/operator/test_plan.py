"""plan(): one situation a test, each with the answer that the rules give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shoal_api.spec import LLMDeployment
from shoal_operator.plan import CreateReplica, Delete, Drain, Undrain, plan
from shoal_operator.world import Phase, Replica, Revision, Traffic, World

NOW = 10_000.0
OLD, NEW = "a" * 10, "b" * 10


def replica(revision: str, slot: int, **changes: Any) -> Replica:
    """Available, with two routers, unless changed."""
    plain = Replica(
        name=f"d-{revision}-{slot}",
        uid=f"{revision}-{slot}",
        resource_version="7",
        revision=revision,
        slot=slot,
        created_s=1000.0 + slot,
        phase="Running",
        ready=True,
        ready_since_s=2000.0,
        traffic=Traffic(routable_by=2, known_by=2),
    )
    return replace(plain, **changes)


def starting(revision: str, slot: int, **changes: Any) -> Replica:
    fields = {"ready": False, "ready_since_s": None, "traffic": Traffic(), "phase": "Pending", **changes}
    return replica(revision, slot, **fields)


def world(*replicas: Replica, n: int = 3, routers: int = 2, fresh: int = 2, **spec: Any) -> World:
    manifest = {
        "apiVersion": "serving.shoal.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": "d"},
        "spec": {"model": {"uri": "hf://org/model"}, "replicas": n, **spec},
    }
    revisions = tuple(Revision(name, at, {}) for at, name in enumerate((OLD, NEW)))
    deployment = LLMDeployment.parse(manifest)
    return World(deployment, NOW, replicas, revisions, routers_expected=routers, routers_fresh=fresh)


def brief(seen: World, revision: str = NEW) -> list[tuple[str, str]]:
    """The actions as (kind, pod)."""
    return [
        (type(action).__name__, f"d-{action.revision}-{action.slot}")
        if isinstance(action, CreateReplica)
        else (type(action).__name__, action.name)
        for action in plan(seen, revision).actions
    ]


def olds(count: int) -> list[Replica]:
    return [replica(OLD, slot) for slot in range(count)]


def test_the_first_replicas_are_created_all_at_once():
    assert plan(world(), NEW).actions == tuple(CreateReplica(NEW, slot) for slot in range(3))


@pytest.mark.parametrize("fresh", [0, 2])
@pytest.mark.parametrize("spec", [{}, {"rollout": {"paused": True}}, {"rollout": {"type": "Recreate"}}])
def test_nothing_is_written_when_all_is_as_wanted(fresh: int, spec: dict[str, Any]):
    seen = world(*(replica(NEW, slot) for slot in range(3)), fresh=fresh, **spec)
    assert plan(seen, NEW) == plan(seen, NEW)
    assert not plan(seen, NEW).actions
    assert plan(seen, NEW).requeue_after_s is None


def test_a_rollout_surges_first_and_drains_nothing():
    assert brief(world(*olds(3))) == [("CreateReplica", f"d-{NEW}-0")]


def test_a_new_replica_that_not_every_router_knows_does_not_count():
    new = replica(NEW, 0, traffic=Traffic(routable_by=1, known_by=1))
    assert brief(world(*olds(3), new)) == []


def test_an_available_new_replica_lets_one_old_go():
    busy = [replica(OLD, slot, traffic=Traffic(2, 0, 2, in_flight=4 - slot)) for slot in range(3)]
    assert brief(world(*busy, replica(NEW, 0))) == [("Drain", f"d-{OLD}-2")]


def test_routers_that_restart_do_not_make_old_replicas_useless():
    blind = [replica(OLD, slot, traffic=Traffic()) for slot in range(3)]
    assert brief(world(*blind, replica(NEW, 0, traffic=Traffic()), fresh=0)) == []


def test_min_ready_seconds_are_waited_for():
    new = replica(NEW, 0, ready_since_s=NOW - 5)
    seen = world(*olds(3), new, rollout={"minReadySeconds": 30})
    assert brief(seen) == []
    assert plan(seen, NEW).requeue_after_s == 25


def test_a_bad_image_costs_no_capacity():
    seen = world(replica(OLD, 0), replica(OLD, 2), starting(NEW, 0))
    assert brief(seen) == [("CreateReplica", f"d-{OLD}-1")]


def test_a_refilled_old_replica_is_left_to_start():
    assert brief(world(*olds(2), starting(OLD, 2), starting(NEW, 0))) == []


def test_a_second_bad_revision_does_not_pile_up():
    middle = starting("c" * 10, 0)
    assert brief(world(*olds(3), middle)) == [("Delete", middle.name)]


def test_a_revision_that_never_served_is_replaced_at_once():
    seen = world(*(starting(OLD, slot) for slot in range(3)))
    assert brief(seen)[0] == ("CreateReplica", f"d-{NEW}-0")
    assert brief(seen)[1:] == [("Delete", f"d-{OLD}-{slot}") for slot in (2, 1, 0)]


def test_scale_down_takes_the_least_missed_first():
    waiting = starting(NEW, 3)
    loaded = [
        replica(NEW, slot, traffic=Traffic(2, 0, 2, in_flight=load)) for slot, load in enumerate((5, 1, 1))
    ]
    assert brief(world(*loaded, waiting, n=1)) == [
        ("Delete", waiting.name),  # never served
        ("Drain", loaded[2].name),  # the younger of the two idle ones
        ("Drain", loaded[1].name),
    ]


def test_demand_that_returns_takes_back_a_draining_replica():
    seen = world(*(replica(NEW, slot) for slot in range(2)), replica(NEW, 2, draining_since_s=NOW - 10))
    (action,) = plan(seen, NEW).actions
    assert isinstance(action, Undrain)
    assert (action.uid, action.resource_version) == (f"{NEW}-2", "7")


def test_a_terminating_replica_is_not_taken_back_and_keeps_its_place():
    ending = replica(NEW, 2, draining_since_s=NOW - 10, terminating_since_s=NOW - 5)
    extra = replica(NEW, 3, terminating_since_s=NOW - 5)
    assert brief(world(replica(NEW, 0), replica(NEW, 1), ending)) == [("CreateReplica", f"d-{NEW}-3")]
    assert brief(world(replica(NEW, 0), replica(NEW, 1), ending, extra)) == []


def test_a_terminating_replica_on_a_lost_node_does_not_count():
    lost = [replica(NEW, slot, terminating_since_s=NOW - 91) for slot in (1, 2, 3)]
    assert brief(world(replica(NEW, 0), *lost)) == [("CreateReplica", f"d-{NEW}-{slot}") for slot in (4, 5)]


@pytest.mark.parametrize(
    ("traffic", "age_s", "fresh", "gone"),
    [
        (Traffic(0, 2, 2), 10, 2, True),
        (Traffic(0, 1, 1), 10, 2, True),  # the other router does not list it
        (Traffic(1, 1, 2), 10, 2, False),
        (Traffic(0, 2, 2, in_flight=1), 10, 2, False),
        (Traffic(0, 1, 1), 10, 1, False),  # the other router's word is missing
        (Traffic(1, 1, 2, in_flight=9), 300, 0, True),
    ],
)
def test_a_draining_replica_is_deleted_when_it_is_empty_or_late(
    traffic: Traffic, age_s: float, fresh: int, gone: bool
):
    ending = replica(OLD, 0, draining_since_s=NOW - age_s, traffic=traffic)
    seen = world(*(replica(NEW, slot) for slot in range(3)), ending, fresh=fresh)
    actions = plan(seen, NEW).actions
    assert [type(action) for action in actions] == ([Delete] if gone else [])
    assert plan(seen, NEW).requeue_after_s == (None if gone and age_s == 300 else 300 - age_s)


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_a_pod_that_ended_is_replaced(phase: Phase):
    ended = starting(NEW, 1, phase=phase)
    assert brief(world(replica(NEW, 0), ended, n=2)) == [
        ("CreateReplica", f"d-{NEW}-2"),
        ("Delete", ended.name),
    ]


def test_a_node_that_refuses_pods_is_not_asked_in_a_hot_loop():
    ended = starting(NEW, 1, phase="Failed", created_s=NOW - 4)
    assert brief(world(replica(NEW, 0), ended, n=2)) == []
    assert plan(world(replica(NEW, 0), ended, n=2), NEW).requeue_after_s == 6


@pytest.mark.parametrize("n", [1, 3])
def test_without_room_an_old_replica_makes_place(n: int):
    stuck = starting(NEW, 0, unschedulable_since_s=NOW - 60)
    seen = world(*olds(n), stuck, n=n)
    assert brief(seen) == [("Drain", f"d-{OLD}-{n - 1}")]
    assert brief(replace(seen, now_s=NOW - 1)) == []
    assert brief(world(*olds(n), stuck, n=n, rollout={"onInsufficientCapacity": "Wait"})) == []
    drained = replica(OLD, n - 1, draining_since_s=NOW - 1, traffic=Traffic(0, 2, 2, in_flight=1))
    assert brief(world(*olds(n - 1), drained, stuck, n=n)) == []


def test_recreate_waits_until_no_old_one_is_left():
    recreate = {"type": "Recreate"}
    assert brief(world(*olds(1), n=1, rollout=recreate)) == [("Drain", f"d-{OLD}-0")]
    assert brief(world(replica(OLD, 0, terminating_since_s=NOW - 1), n=1, rollout=recreate)) == []
    assert brief(world(n=1, rollout=recreate)) == [("CreateReplica", f"d-{NEW}-0")]


def test_a_paused_rollout_scales_what_serves():
    paused = {"paused": True}
    assert brief(world(*olds(3), rollout=paused)) == []
    assert brief(world(*olds(3), n=4, rollout=paused)) == [("CreateReplica", f"d-{OLD}-3")]
    assert brief(world(*olds(3), n=2, rollout=paused)) == [("Drain", f"d-{OLD}-2")]
    assert brief(world(*olds(3), replica(NEW, 0), rollout=paused)) == []
    assert brief(world(n=1, rollout=paused)) == [("CreateReplica", f"d-{NEW}-0")]


def test_suspend_drains_all():
    seen = world(*olds(1), replica(NEW, 0), suspend=True)
    assert {type(action) for action in plan(seen, NEW).actions} == {Drain}
    assert len(plan(seen, NEW).actions) == 2


def test_a_reverted_spec_takes_its_replicas_back():
    back = replica(OLD, 2, draining_since_s=NOW - 5)
    assert brief(world(*olds(2), back, replica(NEW, 0)), OLD) == [("Undrain", back.name)]
    assert brief(world(*olds(3), replica(NEW, 0)), OLD) == [("Drain", f"d-{NEW}-0")]
