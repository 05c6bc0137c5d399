"""A Pod object and the routers' states as values of world.py. Pure: cluster.py and discovery.py read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, get_args

from shoal_api import router_state_pb2 as wire
from shoal_api.names import ANNOTATION_DRAIN, CONTAINER_LOADER, LABEL_REVISION, LABEL_SLOT
from shoal_operator.pod_failures import failure_of
from shoal_operator.timestamps import seconds_of
from shoal_operator.world import Phase, Replica, Traffic

LABEL_LWS: Final = "leaderworkerset.sigs.k8s.io/name"  # LeaderWorkerSet puts it on its pods
NO_SLOT: Final = -1


def traffic_of(states: Iterable[wire.State], uid: str) -> Traffic:
    """The pod `uid` as the fresh `states`, one per router, see it.

    A router that ends or has not listed everything yet has no say in who is known; its requests still count.
    """
    seen = [(state, each) for state in states for each in state.endpoints if each.uid == uid]
    voices = [each.standing for state, each in seen if state.synced and not state.draining]
    reports = [each for _, each in seen if each.report_age_s >= 0]
    newest = min(reports, key=lambda each: each.report_age_s, default=None)
    return Traffic(
        routable_by=voices.count(wire.STANDING_ROUTABLE),
        cordoned_by=voices.count(wire.STANDING_CORDONED),
        known_by=len(voices),
        in_flight=sum(each.in_flight for _, each in seen),
        running=newest.running if newest else 0,
        waiting=newest.waiting if newest else 0,
        kv_usage=newest.kv_usage if newest else 0.0,
        max_num_seqs=newest.max_num_seqs if newest else 0,
        report_age_s=newest.report_age_s if newest else -1.0,
    )


def replica_of(pod: Mapping[str, Any], traffic: Traffic) -> Replica:
    """The replica that `pod` is. For a LeaderWorkerSet's leader pod the name is the set's; uid stays the pod's."""
    meta, status = pod["metadata"], pod.get("status") or {}
    labels = meta.get("labels") or {}
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    ready, scheduled = conditions.get("Ready", {}), conditions.get("PodScheduled", {})
    is_ready = ready.get("status") == "True"
    is_stuck = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    created_s = seconds_of(meta.get("creationTimestamp")) or 0.0
    phase: Phase = status["phase"] if status.get("phase") in get_args(Phase) else "Pending"
    return Replica(
        name=labels.get(LABEL_LWS) or meta["name"],
        uid=meta.get("uid", ""),
        resource_version=meta.get("resourceVersion", ""),
        revision=labels.get(LABEL_REVISION, ""),
        slot=_slot(labels.get(LABEL_SLOT, "")),
        created_s=created_s,
        phase=phase,
        kind="LeaderWorkerSet" if LABEL_LWS in labels else "Pod",
        node=(pod.get("spec") or {}).get("nodeName"),
        ip=status.get("podIP"),
        ready=is_ready,
        ready_since_s=_since(ready, created_s) if is_ready else None,
        terminating_since_s=_terminating_since(meta),
        termination_grace_s=_grace(pod),
        draining_since_s=_draining_since(meta),
        unschedulable_since_s=_since(scheduled, created_s) if is_stuck else None,
        unschedulable_message=scheduled.get("message", "") if is_stuck else "",
        loading=_is_loading(status),
        restarts=sum(each.get("restartCount", 0) for each in _containers(status)),
        failure=failure_of(pod),
        traffic=traffic,
    )


def lws_of(pod: Mapping[str, Any]) -> str:
    """The LeaderWorkerSet that `pod` is part of, empty if of none."""
    return str((pod["metadata"].get("labels") or {}).get(LABEL_LWS, ""))


def group_replica(group: Mapping[str, Any], leader: Mapping[str, Any] | None, traffic: Traffic) -> Replica:
    """The replica that a LeaderWorkerSet is: its leader pod, or a pending one while that does not exist.

    A deleted set ends even before anybody has told its pods.
    """
    meta = group["metadata"]
    ending = _terminating_since(meta)
    if leader is not None:
        replica = replica_of(leader, traffic)
        return replace(replica, terminating_since_s=replica.terminating_since_s or ending)
    labels = meta.get("labels") or {}
    return Replica(
        name=meta["name"],
        uid=meta["uid"],
        resource_version=meta["resourceVersion"],
        revision=labels.get(LABEL_REVISION, ""),
        slot=_slot(labels.get(LABEL_SLOT, "")),
        created_s=seconds_of(meta.get("creationTimestamp")) or 0.0,
        kind="LeaderWorkerSet",
        terminating_since_s=ending,
    )


def _since(condition: Mapping[str, Any], otherwise: float) -> float:
    since = seconds_of(condition.get("lastTransitionTime"))
    return otherwise if since is None else since


def _slot(label: str) -> int:
    return int(label) if label.isascii() and label.isdigit() else NO_SLOT


def _grace(pod: Mapping[str, Any]) -> float:
    """The grace period that the deletion was asked with, else that of the pod."""
    asked = pod["metadata"].get("deletionGracePeriodSeconds")
    own = (pod.get("spec") or {}).get("terminationGracePeriodSeconds", 30)
    return float(own if asked is None else asked)


def _terminating_since(meta: Mapping[str, Any]) -> float | None:
    """A deletion timestamp is when the grace period ends, not when the deletion was asked for."""
    end = seconds_of(meta.get("deletionTimestamp"))
    return None if end is None else end - float(meta.get("deletionGracePeriodSeconds") or 0)


def _draining_since(meta: Mapping[str, Any]) -> float | None:
    """Routers cordon for the annotation, whatever it says: one that is no time is a drain that never times out."""
    annotation = (meta.get("annotations") or {}).get(ANNOTATION_DRAIN)
    if annotation is None:
        return None
    since = seconds_of(annotation)
    return math.inf if since is None else since


def _is_loading(status: Mapping[str, Any]) -> bool:
    return any(
        each["name"] == CONTAINER_LOADER and "running" in (each.get("state") or {})
        for each in status.get("initContainerStatuses") or ()
    )


def _containers(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
