"""plan() in a small simulated cluster: whatever happens between two looks, the promises hold.

The cluster applies the plan, lets pods become ready, routers acknowledge, traffic come and go, pods crash and the
spec change. It is written from the rules, not from plan().
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_api.names import pod_name
from shoal_api.spec import LLMDeployment
from shoal_operator.plan import Action, CreateReplica, Delete, Drain, Plan, plan
from shoal_operator.world import Replica, Revision, Traffic, World

ROUTERS = 2
REVISIONS = ("a" * 10, "b" * 10, "c" * 10)
TICK_S = 10.0
PARSED: dict[str, LLMDeployment] = {}


def deployment(n: int, rollout: dict[str, Any]) -> LLMDeployment:
    manifest = {
        "apiVersion": "serving.shoal.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": "d"},
        "spec": {"model": {"uri": "hf://org/model"}, "replicas": n, "rollout": rollout},
    }
    key = repr(manifest)
    if key not in PARSED:
        PARSED[key] = LLMDeployment.parse(manifest)
    return PARSED[key]


@dataclass
class Cluster:
    """Pods by name. `bad` revisions never become ready; `room` is how many pods find a node."""

    rollout: dict[str, Any]
    n: int
    revision: str = REVISIONS[0]
    bad: frozenset[str] = frozenset()
    room: int = 1000
    now_s: float = 10_000.0
    pods: dict[str, Replica] = field(default_factory=dict)
    births: int = 0
    version: int = 0

    @property
    def world(self) -> World:
        revisions = tuple(Revision(name, 0.0, {}) for name in REVISIONS)
        seen = tuple(self.pods.values())
        return World(deployment(self.n, self.rollout), self.now_s, seen, revisions, ROUTERS, ROUTERS)

    @property
    def available(self) -> int:
        """Pods that every router sends requests to."""
        return sum(pod.traffic.routable_by == ROUTERS for pod in self.pods.values())

    def change(self, name: str, **changes: Any) -> None:
        self.version += 1
        self.pods[name] = replace(self.pods[name], resource_version=str(self.version), **changes)

    def look(self) -> Plan:
        decided = plan(self.world, self.revision)
        for action in decided.actions:
            self.apply(action)
        return decided

    def apply(self, action: Action) -> None:
        if isinstance(action, CreateReplica):
            name = pod_name("d", action.revision, action.slot)
            assert name not in self.pods, "a duplicate name"
            self.births += 1
            self.pods[name] = Replica(
                name, f"uid-{self.births}", "0", action.revision, action.slot, self.now_s + self.births / 1000
            )
            return
        pod = self.pods[action.name]
        assert (action.uid, action.resource_version) == (pod.uid, pod.resource_version), "one change a look"
        if isinstance(action, Drain):
            assert pod.draining_since_s is None
            # The routers cut it off before the next look at the latest.
            cut_off = replace(pod.traffic, routable_by=0, cordoned_by=0)
            self.change(pod.name, draining_since_s=self.now_s, traffic=cut_off)
        elif isinstance(action, Delete):
            late = self.now_s - (pod.draining_since_s or self.now_s) >= 300
            assert pod.traffic.in_flight == 0 or late, "requests were cut"
            assert pod.traffic.routable_by == 0, "requests can still arrive"
            self.change(pod.name, terminating_since_s=self.now_s)
        else:
            assert pod.terminating_since_s is None
            self.change(pod.name, draining_since_s=None)

    def pass_time(self, progress: Any) -> None:
        """One tick. `progress(name)` says whether this pod gets a step further."""
        self.now_s += TICK_S
        for name, pod in list(self.pods.items()):
            if pod.terminating_since_s is not None:
                if progress(name):
                    del self.pods[name]
            elif pod.draining_since_s is not None:
                left = max(0, pod.traffic.in_flight - 1) if progress(name) else pod.traffic.in_flight
                self.change(name, traffic=Traffic(0, ROUTERS, ROUTERS, in_flight=left))
            elif pod.node is None:
                self.schedule(name, pod)
            elif progress(name) and pod.revision not in self.bad:
                self.start(name, pod)

    def schedule(self, name: str, pod: Replica) -> None:
        if sum(other.node is not None for other in self.pods.values()) < self.room:
            self.change(name, node="node", unschedulable_since_s=None, phase="Running")
        elif pod.unschedulable_since_s is None:
            self.change(name, unschedulable_since_s=self.now_s)

    def start(self, name: str, pod: Replica) -> None:
        if not pod.ready:
            self.change(name, ready=True, ready_since_s=self.now_s)
        elif pod.traffic.routable_by < ROUTERS:
            by = pod.traffic.routable_by + 1
            self.change(name, traffic=Traffic(by, 0, by))
        else:
            self.change(name, traffic=replace(pod.traffic, in_flight=(pod.traffic.in_flight + 1) % 4))

    def crash(self, name: str) -> None:
        """The pod is gone, as if its node had vanished."""
        self.pods.pop(name, None)

    def settle(self, looks: int = 400) -> None:
        """Only progress from here on. Fails if the plan does not come to rest."""
        for _ in range(looks):
            decided = self.look()
            if not decided.actions and self.at_rest:
                return
            self.pass_time(lambda _name: True)
        raise AssertionError(f"no rest: {sorted(self.pods)}, {decided}")

    @property
    def at_rest(self) -> bool:
        """Exactly the wanted replicas, all available."""
        return len(self.pods) == self.n == self.available and all(
            pod.revision == self.revision and pod.draining_since_s is None for pod in self.pods.values()
        )


@st.composite
def rollouts(draw: st.DrawFn) -> dict[str, Any]:
    surge = draw(st.integers(0, 3))
    unavailable = draw(st.integers(0 if surge else 1, 2))
    wait = draw(st.sampled_from(["Wait", "ReplaceInPlace"]))
    return {"maxSurge": surge, "maxUnavailable": unavailable, "onInsufficientCapacity": wait}


def settled(rollout: dict[str, Any], n: int, **more: Any) -> Cluster:
    cluster = Cluster(rollout, n, **more)
    cluster.settle()
    return cluster


@settings(max_examples=60, deadline=None)
@given(rollouts(), st.integers(0, 5), st.data())
def test_whatever_happens_no_pod_too_many_and_then_rest(rollout: dict[str, Any], n: int, data: st.DataObject):
    cluster, most, progress = Cluster(rollout, n), n, st.booleans()
    for _ in range(data.draw(st.integers(1, 25))):
        event = data.draw(
            st.sampled_from(["none", "none", "none", "scale", "spec", "crash", "recreate", "pause"])
        )
        if event == "scale":
            cluster.n = data.draw(st.integers(0, 5))
            most = max(most, cluster.n)
        elif event == "spec":
            cluster.revision = data.draw(st.sampled_from(REVISIONS))
        elif event == "crash" and cluster.pods:
            cluster.crash(data.draw(st.sampled_from(sorted(cluster.pods))))
        elif event == "recreate":
            cluster.rollout = {**rollout, "type": data.draw(st.sampled_from(["Recreate", "RollingUpdate"]))}
        elif event == "pause":
            cluster.rollout = {**rollout, "paused": data.draw(st.booleans())}
        cluster.look()
        assert len(cluster.pods) <= most + rollout["maxSurge"]
        cluster.pass_time(lambda _name: data.draw(progress))
    cluster.rollout = rollout
    cluster.settle()
    for _ in range(40):  # and it stays at rest
        cluster.pass_time(lambda _name: True)
        assert not cluster.look().actions


@settings(max_examples=60, deadline=None)
@given(rollouts(), st.integers(1, 5), st.integers(0, 2**32))
def test_rollouts_alone_keep_capacity_however_often_the_spec_flips(
    rollout: dict[str, Any], n: int, seed: int
):
    cluster, chance = settled(rollout, n), random.Random(seed)
    fewest = max(0, n - rollout["maxUnavailable"])
    for step in range(60):
        if step == 0 or chance.random() < 0.08:
            cluster.revision = chance.choice(REVISIONS)
        cluster.look()
        assert cluster.available >= fewest
        assert len(cluster.pods) <= n + rollout["maxSurge"]
        cluster.pass_time(lambda _name: chance.random() < 0.7)
    cluster.settle()


@settings(max_examples=60, deadline=None)
@given(rollouts(), st.integers(1, 5), st.data())
def test_a_bad_revision_never_costs_capacity_and_can_be_left(
    rollout: dict[str, Any], n: int, data: st.DataObject
):
    cluster = settled(rollout, n)
    cluster.bad, cluster.revision = frozenset({REVISIONS[1]}), REVISIONS[1]
    fewest = max(0, n - rollout["maxUnavailable"])
    for _ in range(20):
        cluster.look()
        assert cluster.available >= fewest
        tried = sum(pod.revision in cluster.bad for pod in cluster.pods.values())
        assert tried <= max(1, rollout["maxSurge"] + rollout["maxUnavailable"])
        cluster.pass_time(lambda _name: True)
    assert not any(isinstance(action, CreateReplica) for action in cluster.look().actions)
    if cluster.available > 1 and fewest:  # a lost old one is made again, as long as another one serves
        cluster.crash(
            data.draw(st.sampled_from([name for name in sorted(cluster.pods) if REVISIONS[0] in name]))
        )
        for _ in range(20):
            cluster.look()
            cluster.pass_time(lambda _name: True)
        assert cluster.available >= fewest
    cluster.revision = data.draw(st.sampled_from([REVISIONS[0], REVISIONS[2]]))
    cluster.settle()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3))
def test_a_full_cluster_is_rolled_in_place_one_by_one(n: int, surge: int):
    cluster = settled({"maxSurge": surge}, n, room=n)
    cluster.revision = REVISIONS[1]
    for _ in range(400):
        cluster.look()
        assert cluster.available >= min(n - 1, max(1, n - surge))
        if cluster.at_rest:
            return
        cluster.pass_time(lambda _name: True)
    raise AssertionError(f"no end: {sorted(cluster.pods)}")


@settings(max_examples=60, deadline=None)
@given(rollouts(), st.integers(2, 5), st.data())
def test_scale_down_drains_once_each_and_demand_takes_them_back(
    rollout: dict[str, Any], n: int, data: st.DataObject
):
    cluster = settled(rollout, n)
    for _ in range(data.draw(st.integers(0, 3))):
        cluster.pass_time(lambda _name: data.draw(st.booleans()))
    born, cluster.n = cluster.births, data.draw(st.integers(0, n - 1))
    drained = [action.name for action in cluster.look().actions if isinstance(action, Drain)]
    assert len(set(drained)) == len(drained) == n - cluster.n
    assert not any(isinstance(action, Drain) for action in cluster.look().actions)
    gone = sum(pod.terminating_since_s is not None for pod in cluster.pods.values())
    cluster.n = n
    cluster.settle()
    assert cluster.births == born + gone
