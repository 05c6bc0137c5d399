"""What the autoscaler sees of a world, and what it remembers of a write that failed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shoal_api.kube import ApiError, Object
from shoal_api.spec import LLMDeployment
from shoal_operator.scaler import Scaler, observe
from shoal_operator.world import Demand, Replica, Traffic, World

NEVER = float("-inf")


def deployment(replicas: int = 2, **spec: Any) -> LLMDeployment:
    spec = {"model": {"uri": "hf://a/b"}, "replicas": replicas, "autoscaling": {"maxReplicas": 9}, **spec}
    return LLMDeployment.parse({"metadata": {"name": "m", "namespace": "n", "uid": "d"}, "spec": spec})


def replica(slot: int, *, ready: bool = True, **fields: Any) -> Replica:
    since = 0.0 if ready else None
    made = Replica(f"m-r-{slot}", f"u{slot}", "1", "r", slot, 0.0, ready=ready, ready_since_s=since)
    return replace(made, **fields)


def world(*replicas: Replica, **fields: Any) -> World:
    fields = {"deployment": deployment(), "routers_expected": 1, "routers_fresh": 1} | fields
    return World(now_s=1000.0, replicas=replicas, **fields)


def test_only_ready_replicas_that_stay_carry_load():
    traffic = Traffic(routable_by=1, running=3, waiting=2, kv_usage=0.5, max_num_seqs=8, report_age_s=1.0)
    seen = observe(
        world(
            replica(0, traffic=traffic),
            replica(1, traffic=traffic, draining_since_s=900.0),
            replica(2, traffic=traffic, terminating_since_s=900.0),
            replica(3, ready=False),
        ),
        "r",
        {},
        7.0,
    )
    (load,) = seen.loads
    assert (load.running, load.waiting, load.kv_usage, load.max_num_seqs) == (3, 2, 0.5, 8)
    assert (seen.ready, seen.pending, seen.data_s) == (1, 1, 7.0)


@pytest.mark.parametrize(
    ("wanted", "replicas", "pending"),
    [(3, [replica(0)], 2), (1, [replica(0)], 0), (0, [], 0), (1, [replica(0, ready=False)] * 2, 2)],
)
def test_pending_is_what_is_wanted_or_made_and_does_not_serve(wanted, replicas, pending):
    assert observe(world(*replicas, deployment=deployment(wanted)), "r", {}, NEVER).pending == pending


def test_a_rollout_runs_until_every_replica_is_new_and_available():
    available = Traffic(routable_by=1, known_by=1)
    new, old = replica(0, traffic=available), replica(1, revision="old", traffic=available)
    both = [new, replica(1, traffic=available)]
    assert observe(world(new, old), "r", {"currentRevision": "old"}, NEVER).rollout_running
    assert not observe(world(*both), "r", {"currentRevision": "old"}, NEVER).rollout_running


def test_what_holds_a_decision_up_is_seen():
    stuck = replica(1, ready=False, unschedulable_since_s=10.0)
    seen = observe(world(replica(0), stuck, routers_fresh=0), "r", {}, NEVER)
    assert (seen.unschedulable, seen.routers_fresh) == (True, False)
    assert not observe(world(replica(0)), "r", {}, NEVER).unschedulable


def test_demand_and_capacity_are_handed_on():
    demand = Demand(held=4, idle_s=12.0)
    seen = observe(world(deployment=deployment(engine={"maxNumSeqs": 16}), demand=demand), "r", {}, NEVER)
    assert (seen.held, seen.idle_s, seen.max_num_seqs) == (4, 12.0, 16)


class Scales:
    """A cluster that takes a number of replicas, or not."""

    def __init__(self) -> None:
        self.error: ApiError | None = None
        self.written: list[int] = []

    async def scale(self, found: Object, replicas: int) -> None:
        if self.error is not None:
            raise self.error
        self.written.append(replicas)


async def test_a_write_that_failed_is_decided_again_and_a_step_is_not_used_up():
    cluster, now_s = Scales(), [100.0]
    scaler = Scaler(cluster, now=lambda: now_s[0])  # type: ignore[arg-type]
    busy = Traffic(routable_by=1, known_by=1, running=8, waiting=40, max_num_seqs=8, report_age_s=0.0)
    loaded = world(replica(0, traffic=busy), replica(1, traffic=busy))
    status = {"currentRevision": "r"}
    cluster.error = ApiError(409, "Conflict", "it has changed")
    for _ in range(5):
        now_s[0] += 2.0
        with pytest.raises(ApiError):
            await scaler.scale({"status": status}, loaded, "r")
    cluster.error = None
    scaled = await scaler.scale({"status": status}, loaded, "r")
    assert scaled.written
    assert cluster.written == [scaled.decision.replicas]
    fresh = await Scaler(cluster, now=lambda: now_s[0]).scale({"status": status}, loaded, "r")  # type: ignore[arg-type]
    assert fresh.decision.replicas == scaled.decision.replicas > 2
    (step,) = scaled.status["history"]
    assert (step["from"], step["to"]) == (2, scaled.decision.replicas)


async def test_a_load_that_fits_writes_nothing():
    cluster = Scales()
    calm = Traffic(routable_by=1, known_by=1, running=5, max_num_seqs=8, report_age_s=0.0)
    loaded = world(replica(0, traffic=calm), replica(1, traffic=calm))
    scaled = await Scaler(cluster).scale({"status": {"currentRevision": "r"}}, loaded, "r")  # type: ignore[arg-type]
    assert not scaled.written
    assert cluster.written == []
