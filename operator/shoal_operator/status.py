"""The status of an LLMDeployment, from the world and the status before. Pure: the same world gives the same status.

So a quiet cluster gets no writes: compare with the previous status, and write only what differs. Times enter in
two places alone: lastTransitionTime, kept while a condition's status is the same, and lastFailure's own time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal_api.names import LABEL_DEPLOYMENT, LABEL_ROLE, ROLE_ENGINE
from shoal_operator.conditions import Statement, statements
from shoal_operator.model_cached import cache_of, model_cached
from shoal_operator.tally import Tally, tally
from shoal_operator.timestamps import rfc3339
from shoal_operator.world import World


def status(world: World, revision: str, previous: Mapping[str, Any], router_url: str) -> dict[str, Any]:
    """The whole status as JSON for the /status subresource; `revision` is the wanted one, hashed from the spec.

    `previous` is the object's status as it is, {} for a new object. What the autoscaler wrote there is kept.
    """
    counted = tally(world, revision, previous)
    deployment = world.deployment
    cache = cache_of(counted, previous)
    optional = {
        "cache": cache,
        "autoscaling": previous.get("autoscaling"),
        "lastFailure": _last_failure(world, previous),
        "adapters": _adapters(counted),
    }
    return {
        "observedGeneration": counted.generation,
        **_counts(counted),
        "selector": f"{LABEL_DEPLOYMENT}={deployment.name},{LABEL_ROLE}={ROLE_ENGINE}",
        "currentRevision": revision if counted.rollout_done else previous.get("currentRevision", ""),
        "updateRevision": revision,
        "collisionCount": previous.get("collisionCount", 0),
        "url": router_url,
        "servedModel": deployment.served_model,
        **{key: value for key, value in optional.items() if value},
        "conditions": _conditions(counted, cache, previous),
    }


def progress_deadline_s(world: World, revision: str, previous: Mapping[str, Any]) -> float | None:
    """When status() changes without anything else changing: time to look again. None if no rollout runs."""
    return tally(world, revision, previous).deadline_s


def _counts(counted: Tally) -> dict[str, int]:
    return {
        "replicas": len(counted.world.replicas),
        "readyReplicas": counted.ready,
        "updatedReplicas": len(counted.updated),
        "availableReplicas": counted.available,
        "routableReplicas": counted.routable,
        "drainingReplicas": counted.draining,
        "desiredReplicas": counted.desired,
    }


def _adapters(counted: Tally) -> list[dict[str, Any]]:
    """An engine loads its adapters before it says that it is ready."""
    ready = sum(each.ready for each in counted.updated)
    state = "Ready" if ready else "Loading" if counted.updated else "Pending"
    adapters = counted.world.deployment.spec.adapters
    return [{"name": each.name, "state": state, "readyReplicas": ready} for each in adapters]


def _last_failure(world: World, previous: Mapping[str, Any]) -> dict[str, Any] | None:
    """The newest failure; it stays after its pod is gone."""
    before: dict[str, Any] | None = previous.get("lastFailure")
    failures = [each.failure for each in (*world.replicas, *world.prefetch_pods) if each.failure]
    if not failures:
        return before
    newest = max(failures, key=lambda each: (each.time_s, each.pod, each.container, each.reason))
    time = rfc3339(newest.time_s)
    if before and before["time"] > time:
        return before
    last = {
        "pod": newest.pod,
        "container": newest.container,
        "reason": newest.reason,
        "message": newest.message,
        "time": time,
    }
    return last if newest.exit_code is None else last | {"exitCode": newest.exit_code}


def _conditions(
    counted: Tally, cache: Mapping[str, Any] | None, previous: Mapping[str, Any]
) -> list[dict[str, Any]]:
    stated = dict(statements(counted))
    if cached := model_cached(counted, cache):
        stated["ModelCached"] = cached
    before = {each["type"]: each for each in previous.get("conditions") or ()}
    return [_condition(kind, stated[kind], before.get(kind), counted) for kind in sorted(stated)]


def _condition(
    kind: str, statement: Statement, before: Mapping[str, Any] | None, counted: Tally
) -> dict[str, Any]:
    is_same = before is not None and before["status"] == statement.status
    return {
        "type": kind,
        "status": statement.status,
        "reason": statement.reason,
        "message": statement.message,
        "lastTransitionTime": before["lastTransitionTime"]
        if before and is_same
        else rfc3339(counted.world.now_s),
        "observedGeneration": counted.generation,
    }
