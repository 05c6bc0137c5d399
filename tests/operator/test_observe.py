"""What a Pod object and router states say, as the operator's own values."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_api import router_state_pb2 as wire
from shoal_api.exit_codes import ExitCode
from shoal_api.names import ANNOTATION_DRAIN, LABEL_REVISION, LABEL_SLOT
from shoal_operator.observe import replica_of, traffic_of
from shoal_operator.pod_failures import failure_of
from shoal_operator.timestamps import rfc3339, seconds_of
from shoal_operator.world import Traffic

BORN = "2026-01-01T00:00:00Z"
LATER = "2026-01-01T00:10:00Z"


def pod(status: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    labels = {LABEL_REVISION: "0123456789", LABEL_SLOT: "2"}
    meta = {"name": "m-0123456789-2", "uid": "u", "creationTimestamp": BORN, "labels": labels}
    return {"metadata": meta | metadata, "spec": {"nodeName": "n"}, "status": status or {}}


def engine(state: dict[str, Any], last: dict[str, Any] | None = None, name: str = "engine") -> dict[str, Any]:
    return {"name": name, "image": "img:1", "restartCount": 3, "state": state, "lastState": last or {}}


def ended(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": LATER}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


RUNNING = {"running": {"startedAt": BORN}}


@pytest.mark.parametrize(
    ("container", "reason", "permanent", "current"),
    [
        (engine(waiting("ImagePullBackOff")), "ImagePullBackOff", False, True),
        (engine(waiting("ErrImagePull", "not found")), "ImagePullBackOff", False, True),
        (engine(waiting("InvalidImageName")), "ImagePullBackOff", True, True),
        (
            engine(waiting("CreateContainerConfigError", "no secret")),
            "CreateContainerConfigError",
            False,
            True,
        ),
        (engine(waiting("CrashLoopBackOff"), ended(1)), "CrashLoopBackOff", False, True),
        (engine(waiting("CrashLoopBackOff")), "CrashLoopBackOff", False, True),
        (engine(waiting("CrashLoopBackOff"), ended(ExitCode.MODEL)), "ModelRefused", True, True),
        (engine(waiting("CrashLoopBackOff"), ended(137, "OOMKilled")), "OOMKilled", False, True),
        (engine(ended(ExitCode.USAGE)), "OptionsRefused", True, True),
        (engine(ended(ExitCode.OUT_OF_MEMORY)), "OutOfMemory", False, True),
        (engine(ended(139)), "Error", False, True),
        (engine(RUNNING, ended(ExitCode.DEVICE)), "DeviceError", False, False),
        (engine(waiting("ContainerCreating"), ended(ExitCode.STALLED)), "LoadingStalled", False, True),
    ],
)
def test_failure_names_the_cause(
    container: dict[str, Any], reason: str, permanent: bool, current: bool
) -> None:
    failure = failure_of(pod({"containerStatuses": [container]}))
    assert failure is not None
    assert (failure.reason, failure.permanent, failure.current) == (reason, permanent, current)
    assert failure.container == "engine"


@pytest.mark.parametrize(
    "container", [engine(RUNNING), engine(waiting("ContainerCreating")), engine(ended(0))]
)
def test_no_failure_without_cause(container: dict[str, Any]) -> None:
    assert failure_of(pod({"containerStatuses": [container]})) is None


def test_termination_message_is_the_last_line_and_time_is_the_end() -> None:
    failure = failure_of(pod({"containerStatuses": [engine(ended(139, message="first\nlast words\n\n"))]}))
    assert failure is not None
    assert (failure.message, failure.exit_code, failure.time_s) == ("last words", 139, seconds_of(LATER))


def test_both_words_for_a_failed_pull_say_the_same() -> None:
    pull, back_off = (
        failure_of(pod({"containerStatuses": [engine(state)]}))
        for state in (
            waiting("ErrImagePull", "img:1: not found"),
            waiting("ImagePullBackOff", 'Back-off pulling image "img:1": ErrImagePull: img:1: not found'),
        )
    )
    assert pull == back_off
    assert pull is not None
    assert pull.message.endswith(": img:1: not found")


def test_loader_fails_before_the_engine_and_is_forgotten_once_done() -> None:
    failed = engine(waiting("CrashLoopBackOff"), ended(3), name="model-loader")
    status = {"initContainerStatuses": [failed], "containerStatuses": [engine(waiting("PodInitializing"))]}
    failure = failure_of(pod(status))
    assert failure is not None
    assert failure.container == "model-loader"
    done = engine(ended(0), ended(3), name="model-loader")
    assert failure_of(pod({"initContainerStatuses": [done]})) is None


def test_evicted_pod_and_deleted_pod() -> None:
    status = {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}
    failure = failure_of(pod(status))
    assert failure is not None
    assert (failure.reason, failure.message) == ("Evicted", "low on memory")
    assert failure_of(pod(status, deletionTimestamp=LATER)) is None


def test_replica_of_a_ready_pod() -> None:
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": LATER}
    status = {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "conditions": [ready],
        "containerStatuses": [engine(RUNNING)],
    }
    replica = replica_of(pod(status), Traffic(in_flight=4))
    assert (replica.ready, replica.ready_since_s, replica.phase) == (True, seconds_of(LATER), "Running")
    assert (replica.revision, replica.slot, replica.node, replica.ip) == ("0123456789", 2, "n", "10.0.0.1")
    assert (replica.restarts, replica.traffic.in_flight, replica.failure) == (3, 4, None)


def test_replica_of_an_unschedulable_and_of_a_loading_pod() -> None:
    stuck = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    replica = replica_of(pod({"conditions": [stuck | {"lastTransitionTime": LATER}]}), Traffic())
    assert (replica.unschedulable_since_s, replica.unschedulable_message) == (seconds_of(LATER), "0/1 nodes")
    loader = engine(RUNNING, name="model-loader")
    assert replica_of(pod({"initContainerStatuses": [loader]}), Traffic()).loading


def test_deletion_began_a_grace_period_before_its_timestamp() -> None:
    replica = replica_of(pod(deletionTimestamp=LATER, deletionGracePeriodSeconds=600), Traffic())
    assert (replica.terminating_since_s, replica.termination_grace_s) == (seconds_of(BORN), 600)
    forced = replica_of(pod(deletionTimestamp=LATER, deletionGracePeriodSeconds=0), Traffic())
    assert forced.termination_grace_s == 0


@pytest.mark.parametrize(("text", "since"), [(LATER, seconds_of(LATER)), ("soon", math.inf)])
def test_any_drain_annotation_drains(text: str, since: float) -> None:
    assert replica_of(pod(annotations={ANNOTATION_DRAIN: text}), Traffic()).draining_since_s == since


def test_label_that_is_no_slot_is_no_error() -> None:
    assert replica_of(pod(labels={LABEL_SLOT: "²"}), Traffic()).slot == -1


def test_leader_of_a_set_has_its_name() -> None:
    replica = replica_of(pod(labels={"leaderworkerset.sigs.k8s.io/name": "set"}), Traffic())
    assert (replica.kind, replica.name) == ("LeaderWorkerSet", "set")


def state(*endpoints: wire.Endpoint, synced: bool = True, draining: bool = False) -> wire.State:
    return wire.State(synced=synced, draining=draining, endpoints=endpoints)


def test_traffic_counts_routers_and_sums_requests() -> None:
    routable = wire.Endpoint(uid="u", standing=wire.STANDING_ROUTABLE, in_flight=2, running=1, report_age_s=9)
    cordoned = wire.Endpoint(uid="u", standing=wire.STANDING_CORDONED, in_flight=3, running=7, report_age_s=1)
    other = wire.Endpoint(uid="v", standing=wire.STANDING_ROUTABLE, in_flight=100)
    ending = state(routable, draining=True)
    unsynced = state(routable, synced=False)
    traffic = traffic_of([state(routable, other), state(cordoned), state(other), ending, unsynced], "u")
    assert (traffic.routable_by, traffic.cordoned_by, traffic.known_by) == (1, 1, 2)
    assert (traffic.in_flight, traffic.running, traffic.report_age_s) == (9, 7, 1)


def test_unknown_pod_has_no_traffic() -> None:
    assert traffic_of([], "u") == Traffic()
    assert traffic_of([state(wire.Endpoint(uid="u", report_age_s=-1))], "u").report_age_s == -1


@given(st.integers(0, 4_000_000_000))
def test_times_survive_the_way_there_and_back(seconds: int) -> None:
    assert seconds_of(rfc3339(seconds)) == seconds


@pytest.mark.parametrize("text", [None, 3, "", "soon", "2026-01-01T00:00:00"])
def test_no_time_is_none(text: object) -> None:
    assert seconds_of(text) is None
