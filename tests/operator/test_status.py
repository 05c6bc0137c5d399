"""The status that a world gives: every condition and reason, and that a quiet world gives the same one again."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_api.exit_codes import ExitCode
from shoal_api.spec import LLMDeployment
from shoal_api.status import Condition, ConditionType, LLMDeploymentStatus, Reason
from shoal_operator.status import progress_deadline_s, status
from shoal_operator.timestamps import rfc3339
from shoal_operator.world import Download, PodFailure, Replica, Revision, Traffic, World

NOW = 1_800_000_000.0
NEW, OLD = "aaaaaaaaaa", "bbbbbbbbbb"
URL = "http://shoal-router.shoal:8080"


@cache
def deployment(spec: str) -> LLMDeployment:
    """From the JSON of a spec's changes; rules are slow to check, so each is checked once."""
    meta = {"name": "m", "generation": 7}
    whole = {"model": {"uri": "hf://org/model"}, "replicas": 2} | json.loads(spec)
    return LLMDeployment.parse({"metadata": meta, "spec": whole})


def serving(name: str, revision: str = NEW, **changes: Any) -> Replica:
    replica = Replica(name, name, "1", revision, 0, NOW - 500, "Running", ready=True, ready_since_s=NOW - 400)
    return replace(replica, traffic=Traffic(routable_by=2, known_by=2, report_age_s=1), **changes)


def starting(name: str, revision: str = NEW, **changes: Any) -> Replica:
    return Replica(name, name, "1", revision, 0, NOW - 500, **changes)


def failing(reason: str, exit_code: int | None = None, container: str = "engine", **changes: Any) -> Replica:
    failure = PodFailure("p", container, reason, "words", exit_code, NOW - 60)
    return starting("p", failure=failure, **changes)


def world(*replicas: Replica, spec: dict[str, Any] | None = None, **changes: Any) -> World:
    base = World(deployment(json.dumps(spec or {})), NOW, replicas, (Revision(NEW, NOW - 600, {}),), 2, 2)
    return replace(base, **changes)


def conditions(seen: World, previous: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    return {each["type"]: each for each in status(seen, NEW, previous or {}, URL)["conditions"]}


AUTO = {"autoscaling": {"maxReplicas": 3}}
TWO = (serving("a"), serving("b"))
STUCK = starting("s", unschedulable_since_s=NOW - 100, unschedulable_message="0/1 nodes")
REJECTED = ("InvalidPodTemplate", "InvalidResources", "InvalidSpec")

CASES: list[tuple[str, str, str, World]] = [
    ("Available", "True", "EnoughReplicas", world(*TWO)),
    ("Available", "False", "NotEnoughReplicas", world(serving("a"))),
    ("Available", "True", "EnoughReplicas", world(serving("a"), spec={"rollout": {"maxUnavailable": 1}})),
    ("Available", "False", "NotEnoughReplicas", world(spec={"rollout": {"maxUnavailable": 5}})),
    ("Available", "True", "ScaledToZero", world(spec={"replicas": 0})),
    ("Available", "False", "Suspended", world(*TWO, spec={"suspend": True})),
    ("Progressing", "True", "NewRevision", world(serving("a"), serving("b", OLD))),
    ("Progressing", "True", "NewRevision", world(*TWO, serving("c", OLD, draining_since_s=NOW))),
    ("Progressing", "True", "RolloutComplete", world(*TWO, serving("c", OLD, terminating_since_s=NOW))),
    ("Progressing", "True", "NewRevision", world(*TWO, spec={"rollout": {"minReadySeconds": 401}})),
    ("Progressing", "Unknown", "Paused", world(serving("b", OLD), spec={"rollout": {"paused": True}})),
    (
        "Progressing",
        "False",
        "ProgressDeadlineExceeded",
        world(failing("ImagePullBackOff"), spec={"rollout": {"progressDeadlineSeconds": 600}}),
    ),
    ("SpecAccepted", "True", "Accepted", world()),
    *(("SpecAccepted", "False", each, world(rejected=(each, "no"))) for each in REJECTED),
    ("SpecAccepted", "False", "ModelNotMounted", world(spec={"model": {"uri": "file:///models/x"}})),
    ("SpecAccepted", "False", "ModelNotSupported", world(failing("ModelRefused", ExitCode.MODEL))),
    ("SpecAccepted", "True", "Accepted", world(failing("ModelRefused", ExitCode.MODEL, "model-loader"))),
    ("SpecAccepted", "False", "ModelDoesNotFit", world(failing("OutOfMemory", ExitCode.OUT_OF_MEMORY))),
    ("SpecAccepted", "True", "Accepted", world(failing("OutOfMemory", ExitCode.OUT_OF_MEMORY), serving("a"))),
    ("SpecAccepted", "True", "Accepted", world(replace(failing("ModelRefused", 3), revision=OLD))),
    ("SpecAccepted", "False", "InvalidSpec", world(failing("OptionsRefused", ExitCode.USAGE))),
    (
        "SpecAccepted",
        "False",
        "InvalidExtraArgs",
        world(failing("OptionsRefused", ExitCode.USAGE), spec={"engine": {"extraArgs": ["--strange"]}}),
    ),
    (
        "SpecAccepted",
        "False",
        "MultiNodeRequiresLWS",
        world(spec={"parallelism": {"tensor": 2, "pipeline": 2}}),
    ),
    (
        "SpecAccepted",
        "True",
        "Accepted",
        world(spec={"parallelism": {"tensor": 2, "pipeline": 2}}, lws_served=True),
    ),
    ("ModelCached", "True", "Cached", world(*TWO)),
    ("ModelCached", "False", "Downloading", world(starting("a"))),
    (
        "ModelCached",
        "False",
        "Downloading",
        world(starting("a"), downloads=(Download("a", "Downloading", 9, 3),)),
    ),
    ("ModelCached", "False", "DownloadFailed", world(failing("CrashLoopBackOff", 1, "model-loader"))),
    ("ModelCached", "False", "DownloadFailed", world(starting("a"), downloads=(Download("a", "Failed"),))),
    ("RouterSynced", "True", "Synced", world(*TWO)),
    ("RouterSynced", "False", "WaitingForRouter", world(routers_expected=0, routers_fresh=0)),
    ("RouterSynced", "False", "WaitingForRouter", world(routers_fresh=1)),
    ("RouterSynced", "False", "WaitingForRouter", world(replace(serving("a"), traffic=Traffic(known_by=1)))),
    ("ScalingActive", "True", "ValidMetrics", world(*TWO, spec=AUTO)),
    ("ScalingActive", "False", "FailedGetMetrics", world(*TWO, spec=AUTO, routers_fresh=1)),
    ("ScalingActive", "False", "StaleMetrics", world(replace(TWO[0], traffic=Traffic(2, 0, 2)), spec=AUTO)),
    ("AbleToScale", "True", "ReadyToScale", world(*TWO, spec=AUTO)),
    ("AbleToScale", "False", "TooManyReplicas", world(*TWO, spec=AUTO | {"replicas": 4})),
    ("AbleToScale", "False", "TooManyReplicas", world(*TWO, spec=AUTO, load_wants=4)),
    ("AbleToScale", "True", "ReadyToScale", world(*TWO, spec=AUTO, load_wants=3)),
    ("AbleToScale", "False", "InsufficientCapacity", world(STUCK)),
    ("AbleToScale", "False", "ConflictingAutoscaler", world(spec=AUTO, conflicting_autoscaler="HPA m")),
    ("Degraded", "True", "PodFailing", world(failing("Evicted"))),
    ("Degraded", "True", "CrashLooping", world(failing("CrashLoopBackOff", 1))),
    ("Degraded", "True", "ImagePullFailed", world(failing("ImagePullBackOff"))),
    ("Degraded", "True", "OutOfMemory", world(failing("OOMKilled", 137))),
    ("Degraded", "True", "OutOfMemory", world(failing("OutOfMemory", ExitCode.OUT_OF_MEMORY))),
]


@pytest.mark.parametrize(("kind", "state", "reason", "seen"), CASES)
def test_condition(kind: str, state: str, reason: str, seen: World) -> None:
    condition = conditions(seen)[kind]
    assert (condition["status"], condition["reason"]) == (state, reason)
    assert condition["message"]
    assert condition["observedGeneration"] == 7


def test_every_condition_and_reason_has_a_case() -> None:
    assert {kind for kind, *_ in CASES} == set(get_args(ConditionType))
    assert {reason for _, _, reason, _ in CASES} == set(get_args(Reason))


@pytest.mark.parametrize(
    ("kind", "seen"),
    [
        ("ScalingActive", world(*TWO)),
        ("ScalingActive", world(spec=AUTO | {"suspend": True})),
        ("AbleToScale", world(*TWO)),
        ("AbleToScale", world(*TWO, spec={"autoscaling": {"maxReplicas": 3, "enabled": False}})),
        ("Degraded", world(*TWO)),
        (
            "Degraded",
            world(serving("a", failure=PodFailure("a", "engine", "Error", "", 1, NOW, current=False))),
        ),
        ("ModelCached", world(spec={"model": {"uri": "pvc://claim/m"}})),
    ],
)
def test_condition_that_does_not_apply_is_absent(kind: str, seen: World) -> None:
    assert kind not in conditions(seen)


def test_counts_and_names() -> None:
    seen = world(
        *TWO,
        serving("c", OLD, draining_since_s=NOW),
        serving("d", OLD, terminating_since_s=NOW),
        starting("e"),
        serving("f", draining_since_s=None),
        spec={"rollout": {"minReadySeconds": 100}, "model": {"uri": "hf://o/m", "name": "chat"}},
    )
    fresh = replace(seen.replicas[0], ready_since_s=NOW - 99)
    found = status(replace(seen, replicas=(fresh, *seen.replicas[1:])), NEW, {}, URL)
    counts = ("replicas", "readyReplicas", "updatedReplicas", "availableReplicas", "drainingReplicas")
    assert [found[each] for each in counts] == [6, 4, 4, 3, 2]
    assert (found["desiredReplicas"], found["servedModel"], found["url"]) == (2, "chat", URL)
    assert found["selector"] == "serving.shoal.dev/deployment=m,serving.shoal.dev/role=engine"


def test_current_revision_follows_when_the_rollout_ends() -> None:
    before = {"currentRevision": OLD}
    running = status(world(serving("a"), serving("b", OLD)), NEW, before, URL)
    assert (running["currentRevision"], running["updateRevision"]) == (OLD, NEW)
    assert status(world(*TWO), NEW, running, URL)["currentRevision"] == NEW


def test_replica_lost_after_the_rollout_is_no_rollout() -> None:
    done = status(world(*TWO), NEW, {}, URL)
    condition = conditions(world(serving("a")), done)["Progressing"]
    assert condition["reason"] == "RolloutComplete"


def test_silent_routers_leave_the_last_word_but_not_more_than_is_ready() -> None:
    before = status(world(*TWO), NEW, {}, URL)
    assert status(world(*TWO, routers_fresh=0), NEW, before, URL)["routableReplicas"] == 2
    assert status(world(TWO[0], routers_fresh=0), NEW, before, URL)["routableReplicas"] == 1


def test_deadline_counts_from_the_last_replica_that_became_ready() -> None:
    seen = world(serving("a"), serving("b", OLD), spec={"rollout": {"progressDeadlineSeconds": 450}})
    assert progress_deadline_s(seen, NEW, {}) == NOW - 400 + 450
    late = replace(seen, now_s=NOW + 50)
    assert conditions(seen)["Progressing"]["reason"] == "NewRevision"
    assert conditions(late)["Progressing"]["reason"] == "ProgressDeadlineExceeded"
    assert progress_deadline_s(world(*TWO), NEW, {}) is None


def test_transition_time_changes_with_status_only() -> None:
    first = status(world(serving("a")), NEW, {}, URL)
    later = replace(world(*TWO), now_s=NOW + 100)
    second = {
        each["type"]: each["lastTransitionTime"] for each in status(later, NEW, first, URL)["conditions"]
    }
    assert second["Available"] == rfc3339(NOW + 100)
    assert second["Progressing"] == second["SpecAccepted"] == rfc3339(NOW)


def test_failure_stays_after_its_pod_and_gives_way_to_a_newer_one() -> None:
    first = status(world(failing("OOMKilled", 137)), NEW, {}, URL)
    assert status(world(*TWO), NEW, first, URL)["lastFailure"] == first["lastFailure"]
    assert first["lastFailure"]["exitCode"] == 137
    newer = failing("Evicted")
    newer = replace(newer, failure=replace(newer.failure, time_s=NOW)) if newer.failure else newer
    assert status(world(newer), NEW, first, URL)["lastFailure"]["reason"] == "Evicted"


def test_cache_tells_of_the_slowest_download_and_keeps_the_size() -> None:
    downloads = (Download("a", "Downloading", 9, 7), Download("b", "Downloading", 9, 3))
    first = status(world(starting("a"), starting("b"), downloads=downloads), NEW, {}, URL)
    assert first["cache"] == {"state": "Downloading", "bytesTotal": 9, "bytesDone": 3}
    assert status(world(*TWO), NEW, first, URL)["cache"] == {
        "state": "Ready",
        "bytesTotal": 9,
        "bytesDone": 9,
    }


def test_a_model_counts_as_fetched_when_the_engine_begins_not_only_when_it_is_ready() -> None:
    previous = status(world(starting("a"), downloads=(Download("a", "Downloading", 9, 9),)), NEW, {}, URL)
    seen = status(world(starting("a", phase="Running")), NEW, previous, URL)
    assert seen["cache"] == {"state": "Ready", "bytesTotal": 9, "bytesDone": 9}


@pytest.mark.parametrize(
    ("download", "words"),
    [
        (Download("a", "Downloading", None, 0, "waiting for another process"), "waiting for another process"),
        (Download("a", "Downloading", 30 * 10**9, 6 * 10**9), "6.0 of 30.0 GB"),
        (
            Download("a", "Downloading", 30 * 10**9, 6 * 10**9, "", 1e8),
            "6.0 of 30.0 GB, about 4 minutes left",
        ),
        (Download("a", "Downloading", 10**9, 10**9 - 1, "", 1e8), "about 1 minute left"),
        (Download("a", "Downloading", 10**9, 0, "", 0.0), "none of it lately"),
    ],
)
def test_the_condition_tells_how_far_the_model_is(download: Download, words: str) -> None:
    waits = Download("b", "Downloading", None, 0)  # for a, on a volume they share
    seen = world(starting("a"), starting("b"), downloads=(waits, download))
    assert conditions(seen)["ModelCached"]["message"].endswith(words)


@pytest.mark.parametrize(
    ("replicas", "state", "ready"), [((), "Pending", 0), ((starting("a"),), "Loading", 0), (TWO, "Ready", 2)]
)
def test_adapters(replicas: tuple[Replica, ...], state: str, ready: int) -> None:
    seen = world(*replicas, spec={"adapters": [{"name": "x", "uri": "hf://o/x"}]})
    assert status(seen, NEW, {}, URL)["adapters"] == [{"name": "x", "state": state, "readyReplicas": ready}]


def test_block_of_the_autoscaler_is_kept() -> None:
    block = {"lastMetric": 0.5}
    assert status(world(), NEW, {"autoscaling": block}, URL)["autoscaling"] == block


replicas = st.builds(
    lambda base, **changes: replace(base, **changes),
    st.sampled_from([serving("a"), starting("b"), STUCK, failing("OOMKilled", 137), failing("E", 3)]),
    name=st.sampled_from("pqrst"),
    revision=st.sampled_from([NEW, OLD]),
    draining_since_s=st.sampled_from([None, NOW - 5]),
    terminating_since_s=st.sampled_from([None, None, NOW - 5]),
    traffic=st.builds(Traffic, routable_by=st.integers(0, 2), known_by=st.integers(0, 2)),
)
worlds = st.builds(
    lambda seen, spec, **changes: world(*seen, spec=spec, **changes),
    st.lists(replicas, max_size=5, unique_by=lambda each: each.name),
    st.sampled_from([{}, AUTO, {"replicas": 0}, {"suspend": True}, {"rollout": {"paused": True}}]),
    routers_expected=st.integers(0, 2),
    routers_fresh=st.integers(0, 2),
    downloads=st.lists(
        st.builds(Download, st.sampled_from("pq"), st.sampled_from(["Downloading", "Ready", "Failed"])),
        max_size=2,
    ).map(tuple),
)


@settings(deadline=None)
@given(worlds, worlds)
def test_status_is_valid_and_a_fixed_point(before: World, seen: World) -> None:
    previous = status(before, OLD, {}, URL)
    once = status(seen, NEW, previous, URL)
    through_the_server = json.loads(json.dumps(once))
    later = replace(seen, now_s=NOW + 1, replicas=seen.replicas[::-1], downloads=seen.downloads[::-1])
    assert status(later, NEW, through_the_server, URL) == once
    parsed = LLMDeploymentStatus.model_validate(once, by_alias=True, by_name=False)
    assert parsed.model_dump(by_alias=True, exclude_unset=True, mode="json") == once
    assert all(isinstance(each, Condition) for each in parsed.conditions)


def test_what_the_api_server_refused_is_said_where_replicas_are_missing() -> None:
    refused = conditions(world(serving("a"), refusal="exceeded quota: few"))
    assert "exceeded quota: few" in refused["Available"]["message"]
    assert "exceeded quota" not in str(
        conditions(world(serving("a"), serving("b"), refusal="exceeded quota"))
    )
