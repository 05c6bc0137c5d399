"""One look at one LLMDeployment: read everything anew, decide, do the next actions, report. Level-triggered.

Called for any reason and as often as one likes; what is as it should be gets no write. Decisions are plan.py's and
status.py's, calls are cluster.py's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from shoal_api.acceptance import rejections
from shoal_api.kube import ApiError, Object
from shoal_api.names import ANNOTATION_DRAIN
from shoal_api.spec import InvalidManifest, LLMDeployment
from shoal_operator.action_events import event_of
from shoal_operator.belongings import Belongings
from shoal_operator.cluster import Cluster
from shoal_operator.leader_worker_set import render_group
from shoal_operator.loader_progress import PERIOD_S as LOADING_PERIOD_S
from shoal_operator.loader_progress import LoaderProgress
from shoal_operator.plan import Action, CreateReplica, Delete, Plan, Undrain, plan
from shoal_operator.pod import render
from shoal_operator.prefetcher import Prefetcher
from shoal_operator.revision import revision_of
from shoal_operator.scaler import PERIOD_S as SCALING_PERIOD_S
from shoal_operator.scaler import Scaler
from shoal_operator.status import progress_deadline_s, status
from shoal_operator.timestamps import rfc3339
from shoal_operator.transitions import Event, events_of
from shoal_operator.unreadable import unreadable_status
from shoal_operator.world import Replica, World
from shoal_operator.world_reader import Routers, last_activated, read_world

log = logging.getLogger(__name__)

ALREADY_EXISTS = "AlreadyExists"
INVALID = 422
REFUSED = (400, 403, INVALID)  # what an API server answers to a pod that it will never take


@dataclass(frozen=True, slots=True)
class ReconcileSettings:
    engine_image: str
    router_url: str
    operator_version: str


class Reconciler:
    """Reconciles by `namespace/name`; `clock` is seconds since the epoch."""

    def __init__(
        self,
        cluster: Cluster,
        routers: Routers,
        settings: ReconcileSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cluster = cluster
        self._routers = routers
        self._settings = settings
        self._clock = clock
        self._scaler = Scaler(cluster)
        self._loaders = LoaderProgress()
        self._belongings = Belongings(cluster)
        self._prefetcher = Prefetcher(cluster, settings.engine_image, settings.operator_version)
        self._uids: dict[str, str] = {}

    async def reconcile(self, key: str) -> float | None:
        """Returns in how many seconds to look again without cause. Raises ApiError, after all that could be done."""
        found = await self._cluster.get("LLMDeployment", *key.split("/"))
        if found is None or found["metadata"].get("deletionTimestamp"):
            self._forget(key)
            return None  # what it owns is garbage collected
        self._uids[key] = found["metadata"]["uid"]
        try:
            deployment = LLMDeployment.parse(found)
        except InvalidManifest as error:
            await self._report(found, unreadable_status(found, error, self._clock()))
            return None
        return await self._look(found, deployment)

    def _forget(self, key: str) -> None:
        self._belongings.forget(key)
        self._scaler.forget(self._uids.pop(key, ""))

    async def _look(self, found: Object, deployment: LLMDeployment) -> float | None:
        wanted = revision_of(deployment)
        world = await read_world(self._cluster, self._routers, deployment, self._clock())
        loading = (*world.replicas, *world.prefetch_pods)
        world = replace(world, downloads=await self._loaders.read(loading))
        world, failure = await self._prepare(deployment, wanted, world)
        world, not_fetched = await self._prefetcher.step(world, wanted)
        before = found.get("status", {})
        found, world, previous = await self._scale(found, world, wanted)
        # A spec that cannot be run changes nothing of what serves: it stays with the last one that could.
        served = wanted if world.rejected is None else last_activated(world)
        todo = plan(world, served) if served else Plan()
        refusal = await self._do(found, world, todo) or not_fetched
        if refusal is not None and refusal.status in REFUSED:  # what passes by itself is nothing to tell
            world = replace(world, refusal=refusal.message)
        await self._report(found, status(world, wanted, previous, self._settings.router_url), before)
        if error := failure or refusal:
            raise error
        await self._belongings.forget_old(world, served)
        deadline_s = progress_deadline_s(world, wanted, previous)
        soon = [
            todo.requeue_after_s,
            None if deadline_s is None else deadline_s - world.now_s,
            SCALING_PERIOD_S if _is_scaled(world) else None,
            LOADING_PERIOD_S if any(each.loading for each in loading) else None,
        ]
        return min((max(0.1, each) for each in soon if each is not None), default=None)

    async def _prepare(
        self, deployment: LLMDeployment, wanted: str, world: World
    ) -> tuple[World, ApiError | None]:
        """The world with what pods need, or with why the spec is rejected; an error if that may not be the last word."""
        rejected = await self._rejected(deployment, wanted, world)
        if rejected is not None:
            return replace(world, rejected=rejected), None
        try:
            return await self._belongings.prepare(deployment, wanted, world), None
        except ApiError as error:
            if error.status != INVALID:
                raise
            return replace(world, rejected=("InvalidSpec", error.message)), error

    async def _scale(
        self, found: Object, world: World, wanted: str
    ) -> tuple[Object, World, Mapping[str, Any]]:
        """The autoscaler's turn: object, world and previous status with what it changed."""
        previous = found.get("status", {})
        if not _is_scaled(world):
            self._scaler.forget(world.deployment.metadata.uid)
            return found, world, previous
        scaled = await self._scaler.scale(found, world, wanted)
        if scaled.written:
            again = await self._cluster.get(
                "LLMDeployment", world.deployment.namespace, world.deployment.name
            )
            if again is not None:
                found, world = again, replace(world, deployment=LLMDeployment.parse(again))
        world = replace(world, load_wants=scaled.decision.wanted)
        return found, world, {**previous, "autoscaling": scaled.status}

    async def _rejected(self, deployment: LLMDeployment, wanted: str, world: World) -> tuple[str, str] | None:
        """Reason and message; asks the API server once for each new revision, by a dry run."""
        for rejection in rejections(deployment):
            return rejection.reason, str(rejection.problem)
        if deployment.pods_per_replica > 1 and not world.lws_served:
            return (
                "MultiNodeRequiresLWS",
                "a replica over several nodes needs LeaderWorkerSet: install its controller",
            )
        if any(revision.name == wanted for revision in world.revisions):
            return None
        try:
            await self._cluster.create(self._replica(deployment, wanted, 0), dry_run=True)
        except ApiError as error:
            if error.status in REFUSED:
                return "InvalidPodTemplate", error.message
            if error.reason != ALREADY_EXISTS:
                raise
        return None

    async def _do(self, found: Object, world: World, todo: Plan) -> ApiError | None:
        """The actions up to the first that is refused; why that was."""
        for action in todo.actions:
            try:
                done = await self._act(world, action)
            except ApiError as error:
                return error
            if done:
                await self._tell(found, [event_of(action, world)])
        return None

    async def _act(self, world: World, action: Action) -> bool:
        """One write; whether it was done. What somebody else was faster with is no error: the next look sees it."""
        deployment = world.deployment
        try:
            if isinstance(action, CreateReplica):
                spec = _of_revision(world, action.revision)
                await self._cluster.create(self._replica(spec, action.revision, action.slot))
                return True
            replica = next(each for each in world.replicas if each.uid == action.uid)
            if isinstance(action, Delete):
                await self._delete(deployment.namespace, replica)
            else:
                since = None if isinstance(action, Undrain) else rfc3339(world.now_s)
                # Routers watch pods: of a group it is the leader's.
                pod = replica.name if replica.kind == "Pod" else f"{replica.name}-0"
                await self._cluster.annotate(
                    "Pod", deployment.namespace, pod, replica.uid, ANNOTATION_DRAIN, since
                )
        except ApiError as error:
            # 422 to an annotation says that it is another pod by now; to a new pod, that it will never do.
            is_other = error.status == INVALID and not isinstance(action, CreateReplica)
            if not (error.conflict or error.not_found or is_other):
                raise
            log.info("%s/%s: %s: %s", deployment.namespace, deployment.name, type(action).__name__, error)
            return False
        return True

    async def _delete(self, namespace: str, replica: Replica) -> None:
        """As it was read: one that never served goes undrained, and must not have become ready meanwhile."""
        if replica.kind == "Pod":
            await self._cluster.delete("Pod", namespace, replica.name, replica.uid, replica.resource_version)
        elif group := await self._cluster.get("LeaderWorkerSet", namespace, replica.name):
            await self._cluster.delete("LeaderWorkerSet", namespace, replica.name, group["metadata"]["uid"])

    def _replica(self, deployment: LLMDeployment, revision: str, slot: int) -> Object:
        make = render_group if deployment.pods_per_replica > 1 else render
        return make(deployment, revision, slot, self._settings.engine_image, self._settings.operator_version)

    async def _report(
        self, found: Object, new: Mapping[str, Any], before: Mapping[str, Any] | None = None
    ) -> None:
        """Write the status if it differs; `before` is the one that events compare with, the object's if not given."""
        before = found.get("status", {}) if before is None else before
        if new == before:
            return
        try:
            await self._cluster.write_status(found, new)
        except ApiError as error:
            if not error.conflict:
                raise
            return  # it has changed meanwhile, which is a reason to look again by itself
        await self._tell(found, events_of(before, new))

    async def _tell(self, found: Object, events: Iterable[Event | None]) -> None:
        """Events are for people: one that cannot be written stops nothing."""
        for event in events:
            if event is None:
                continue
            try:
                await self._cluster.post_event(found, *event, rfc3339(self._clock()))
            except ApiError as error:
                log.warning("event %s was not written: %s", event[1], error)


def _of_revision(world: World, name: str) -> LLMDeployment:
    """The deployment as it was when `name` was wanted."""
    deployment = world.deployment
    spec = next(revision.spec for revision in world.revisions if revision.name == name)
    manifest = deployment.model_dump(by_alias=True, mode="json", exclude_none=True, exclude_defaults=True)
    return LLMDeployment.parse({**manifest, "spec": dict(spec)})


def _is_scaled(world: World) -> bool:
    spec = world.deployment.spec
    on = spec.autoscaling is not None and spec.autoscaling.enabled and not spec.suspend
    return on and world.conflicting_autoscaler is None
