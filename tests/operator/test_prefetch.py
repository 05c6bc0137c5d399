"""Which pods fetch a model ahead of a rollout, and where."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shoal_api.names import VOLUME_MODELS, VOLUME_TMP
from shoal_api.spec import LLMDeployment
from shoal_operator.observe import NO_SLOT
from shoal_operator.plan import CreateReplica, plan
from shoal_operator.pod import render
from shoal_operator.prefetch import Prefetch, prefetch, prefetch_pods
from shoal_operator.status import status
from shoal_operator.world import Download, PodFailure, Replica, Revision, Traffic, World

OLD, NEW = "old", "new"
HOST_PATH = {"type": "HostPath", "path": "/models", "prefetch": True}
CLAIM = {"type": "PersistentVolumeClaim", "claimName": "models", "prefetch": True}


def world(
    cache: dict[str, Any],
    *replicas: Replica,
    uri: str = "hf://org/name",
    resources: dict[str, Any] | None = None,
    **changes: Any,
) -> World:
    spec = {"model": {"uri": uri}, "replicas": 2, "cache": cache, "resources": resources or {}}
    manifest = {"metadata": {"name": "m", "uid": "u"}, "spec": spec}
    return World(LLMDeployment.parse(manifest), 1000.0, replicas=replicas, **changes)


def replica(revision: str, slot: int, node: str | None, *, ready: bool = True) -> Replica:
    since = 0.0 if ready else None
    traffic = Traffic(routable_by=ready, known_by=1)
    name = f"m-{revision}-{slot}"
    return Replica(
        name,
        name,
        "1",
        revision,
        slot,
        0.0,
        "Running",
        node=node,
        ready=ready,
        ready_since_s=since,
        traffic=traffic,
    )


OLD_ONES = (replica(OLD, 0, "a"), replica(OLD, 1, "b"), replica(OLD, 2, "b"))


def pods(found: World) -> dict[str, dict[str, Any]]:
    return prefetch_pods(found, NEW, "engine:1", "0")


def nodes(pod: dict[str, Any]) -> list[str]:
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return [term["matchFields"][0]["values"][0] for term in required["nodeSelectorTerms"]]


def fetching(found: World, phase: str = "Running", **changes: Any) -> World:
    """The same, with the pods that are wanted there."""
    there = [
        Replica(name, f"uid-{name}", "1", NEW, NO_SLOT, 900.0, phase, **changes)  # type: ignore[arg-type]
        for name in pods(found)
    ]
    return replace(found, prefetch_pods=tuple(there))


def step(found: World) -> Prefetch:
    return prefetch(found, NEW, "engine:1", "0")


def test_one_for_each_node_of_a_host_path_and_one_for_a_claim():
    assert [nodes(pod) for pod in pods(world(HOST_PATH, *OLD_ONES)).values()] == [["a"], ["b"]]
    (pod,) = pods(world(CLAIM, *OLD_ONES)).values()
    assert nodes(pod) == ["a", "b"]  # a claim may be usable only where it is used


def test_names_stay_when_nodes_come_and_go():
    assert pods(world(HOST_PATH, OLD_ONES[1])).keys() < pods(world(HOST_PATH, *OLD_ONES)).keys()
    assert pods(world(CLAIM, OLD_ONES[1])).keys() == pods(world(CLAIM, *OLD_ONES)).keys()


@pytest.mark.parametrize(
    "found",
    [
        world({**HOST_PATH, "prefetch": False}, *OLD_ONES),
        world({"type": "EmptyDir", "prefetch": True}, *OLD_ONES),
        world(HOST_PATH, *OLD_ONES, uri="file:///models/m.gguf"),
        world(HOST_PATH),
        world(HOST_PATH, *OLD_ONES, replica(NEW, 0, None, ready=False)),
        world(HOST_PATH, *(replace(each, terminating_since_s=900.0) for each in OLD_ONES)),
        world(HOST_PATH, *OLD_ONES, rejected=("InvalidSpec", "no")),
    ],
    ids=[
        "not asked for",
        "a cache that goes",
        "nothing to fetch",
        "first revision",
        "the rollout has begun",
        "nobody is left to wait for",
        "a spec that cannot be run",
    ],
)
def test_nothing_is_fetched_ahead(found: World):
    assert step(found) == Prefetch()


def test_it_fetches_what_the_engine_looks_for():
    found = world(HOST_PATH, *OLD_ONES)
    (pod, *_) = pods(found).values()
    engine = render(found.deployment, NEW, 0, "engine:1", "0")
    (loader,) = engine["spec"]["initContainers"]
    (container,) = pod["spec"]["containers"]
    assert {**container, "resources": None} == {**loader, "resources": None}
    mounted = [each for each in engine["spec"]["volumes"] if each["name"] in (VOLUME_MODELS, VOLUME_TMP)]
    assert pod["spec"]["volumes"] == mounted
    assert pod["spec"]["securityContext"] == engine["spec"]["securityContext"]
    assert pod["spec"]["restartPolicy"] == "OnFailure"


def test_it_finds_room_beside_an_engine_that_has_the_whole_node():
    limits = {"cpu": "64", "memory": "900Gi", "rdma/hca": 8}
    resources = {"acceleratorCount": 1, "requests": {"cpu": "64", "memory": "900Gi"}, "limits": limits}
    found = world(HOST_PATH, *OLD_ONES, resources=resources)
    (pod, *_) = pods(found).values()
    (container,) = pod["spec"]["containers"]
    assert container["resources"] == {
        "requests": {"cpu": "10m", "memory": "128Mi"},
        "limits": {"cpu": "64", "memory": "900Gi"},
    }


def test_pods_are_made_once_awaited_and_left_until_the_rollout_begins():
    found = world(HOST_PATH, *OLD_ONES)
    assert step(found) == Prefetch(tuple(pods(found).values()), (), waiting=True)
    assert step(fetching(found)) == Prefetch((), (), waiting=True)
    fetched = fetching(found, "Succeeded")
    assert step(fetched) == Prefetch((), (), waiting=False)
    begun = replace(fetched, replicas=(*OLD_ONES, replica(NEW, 0, "a", ready=False)))
    assert step(begun) == Prefetch((), fetched.prefetch_pods, waiting=False)


def test_pods_of_a_revision_that_is_not_wanted_any_more_go():
    found = fetching(world(HOST_PATH, *OLD_ONES))
    other = prefetch(found, "other", "engine:1", "0")
    assert (other.delete, other.waiting, len(other.create)) == (found.prefetch_pods, True, 2)


def test_what_no_node_takes_is_not_waited_for_but_only_after_a_while():
    found = world(HOST_PATH, *OLD_ONES)
    patience = found.deployment.spec.rollout.insufficient_capacity_s
    assert step(fetching(found, "Pending", unschedulable_since_s=1000.0 - patience + 1)).waiting
    assert not step(fetching(found, "Pending", unschedulable_since_s=1000.0 - patience)).waiting


def test_a_pod_that_kubelet_ended_makes_room_for_another_not_at_once():
    young = fetching(world(HOST_PATH, *OLD_ONES), "Failed")
    young = replace(
        young, prefetch_pods=tuple(replace(each, created_s=995.0) for each in young.prefetch_pods)
    )
    assert step(young) == Prefetch((), (), waiting=True)
    assert plan(replace(young, prefetching=True), NEW).requeue_after_s == 5.0
    old = fetching(world(HOST_PATH, *OLD_ONES), "Failed")
    assert step(old) == Prefetch((), old.prefetch_pods, waiting=True)


def test_a_rollout_waits_for_it():
    revisions = (Revision(OLD, 0.0, {}), Revision(NEW, 1.0, {}))
    seen = {"revisions": revisions, "routers_expected": 1, "routers_fresh": 1}
    old = OLD_ONES[:2]
    assert plan(world(HOST_PATH, *old, **seen, prefetching=True), NEW).actions == ()
    assert plan(world(HOST_PATH, *old, **seen), NEW).actions == (CreateReplica(NEW, 0),)


def test_the_status_tells_how_far_it_is_and_what_is_in_the_way():
    found = replace(fetching(world(HOST_PATH, *OLD_ONES)), prefetching=True)
    name = found.prefetch_pods[0].name
    loading = replace(found, downloads=(Download(name, "Downloading", 4_000_000_000, 1_000_000_000),))
    assert condition(loading, "ModelCached")["message"] == "the model is being fetched: 1.0 of 4.0 GB"
    assert "its model is fetched first" in condition(loading, "Progressing")["message"]
    failure = PodFailure(name, "model-loader", "CrashLoopBackOff", "no such repository", 1, 950.0)
    pods_there = tuple(replace(each, failure=failure) for each in found.prefetch_pods)
    broken = replace(found, prefetch_pods=pods_there)
    assert condition(broken, "ModelCached")["reason"] == "DownloadFailed"
    assert "no such repository" in condition(broken, "Progressing")["message"]
    assert status(broken, NEW, {}, "")["lastFailure"]["pod"] == name


def test_the_model_counts_as_fetched_when_all_places_have_it():
    found = fetching(world(HOST_PATH, *OLD_ONES), "Succeeded")
    first, second = found.prefetch_pods
    half = replace(found, prefetch_pods=(first, replace(second, phase="Pending")), prefetching=True)
    assert condition(half, "ModelCached")["status"] == "False"
    assert condition(found, "ModelCached")["status"] == "True"


def condition(found: World, kind: str) -> dict[str, Any]:
    return next(each for each in status(found, NEW, {}, "")["conditions"] if each["type"] == kind)
