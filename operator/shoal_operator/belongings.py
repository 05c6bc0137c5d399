"""The objects beside a deployment's pods, kept as they should be: Service, budget, claim, one ConfigMap per revision.

What they are to be is desired.py's and history.py's; calls are cluster.py's. Pods are reconcile.py's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shoal_api.kube import Object
from shoal_api.names import ANNOTATION_ACTIVATED, KIND
from shoal_api.spec import LLMDeployment
from shoal_operator.cluster import Cluster
from shoal_operator.desired import config_map, desired_objects
from shoal_operator.history import outlived
from shoal_operator.ownership import config_map_name
from shoal_operator.timestamps import rfc3339
from shoal_operator.world import World
from shoal_operator.world_reader import last_activated, owner_of, revisions_of

DRIFT_CHECK_S = 30.0
BUDGET = "PodDisruptionBudget"


@dataclass(frozen=True, slots=True)
class Checked:
    """What was last applied, when, and who else scales the deployment."""

    bodies: list[Object]
    versions: list[str]  # resource version of each body's object then
    at_s: float
    conflicting_autoscaler: str | None


class Belongings:
    """Remembers of each deployment what was applied last, so that a quiet one gets no write. All raise ApiError."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._checked: dict[str, Checked] = {}

    def forget(self, key: str) -> None:
        """The deployment namespace/name is gone."""
        self._checked.pop(key, None)

    async def prepare(self, deployment: LLMDeployment, wanted: str, world: World) -> World:
        """Everything that pods need, the wanted revision among it; returns the world with that as the newest."""
        checked = await self._check(deployment, world.now_s)
        world = replace(world, conflicting_autoscaler=checked.conflicting_autoscaler)
        if last_activated(world) == wanted:
            return world
        made = await self._activate(deployment, wanted, world)
        others = tuple(each for each in world.revisions if each.name != wanted)
        return replace(world, revisions=(*others, *revisions_of([made])))

    async def forget_old(self, world: World, serving: str | None) -> None:
        """Delete the ConfigMaps of revisions that nobody goes back to."""
        deployment = world.deployment
        for revision in outlived(world, serving):
            await self._delete(deployment, "ConfigMap", config_map_name(deployment, revision))

    async def _check(self, deployment: LLMDeployment, now_s: float) -> Checked:
        """Put right what others changed: after each change of the spec, and now and then."""
        key, bodies = f"{deployment.namespace}/{deployment.name}", desired_objects(deployment)
        last = self._checked.get(key)
        if last is not None and last.bodies == bodies and now_s - last.at_s < DRIFT_CHECK_S:
            return last
        # What nobody has touched since gets no write, not even one that changes nothing.
        known = last.versions if last is not None and last.bodies == bodies else [""] * len(bodies)
        versions = [await self._apply(body, version) for body, version in zip(bodies, known, strict=True)]
        if all(body["kind"] != BUDGET for body in bodies):
            await self._delete(deployment, BUDGET, deployment.name)
        conflicting = await self._conflicting_autoscaler(deployment)
        self._checked[key] = Checked(bodies, versions, now_s, conflicting)
        return self._checked[key]

    async def _apply(self, body: Object, known: str) -> str:
        """Unless its object is still as of the resource version `known`; returns the one it has then."""
        metadata = body["metadata"]
        found = await self._cluster.get(body["kind"], metadata["namespace"], metadata["name"])
        if found is None or found["metadata"]["resourceVersion"] != known:
            found = await self._cluster.apply(body)
        return str(found["metadata"]["resourceVersion"])

    async def _delete(self, deployment: LLMDeployment, kind: str, name: str) -> None:
        """As it was read, and only if it is ours."""
        found = await self._cluster.get(kind, deployment.namespace, name)
        if found is None or owner_of(found) != deployment.metadata.uid:
            return
        metadata = found["metadata"]
        await self._cluster.delete(
            kind, deployment.namespace, name, metadata["uid"], metadata["resourceVersion"]
        )

    async def _conflicting_autoscaler(self, deployment: LLMDeployment) -> str | None:
        """A HorizontalPodAutoscaler, KEDA's too, that writes the same spec.replicas."""
        scaling = deployment.spec.autoscaling
        if scaling is None or not scaling.enabled:
            return None
        for each in await self._cluster.all("HorizontalPodAutoscaler", deployment.namespace):
            target = each["spec"]["scaleTargetRef"]
            if (target["kind"], target["name"]) == (KIND, deployment.name):
                return str(each["metadata"]["name"])
        return None

    async def _activate(self, deployment: LLMDeployment, wanted: str, world: World) -> Object:
        """The ConfigMap of the wanted revision, marked as the newest."""
        now = rfc3339(world.now_s)
        body = config_map(deployment, wanted, now)
        namespace, name = deployment.namespace, body["metadata"]["name"]
        found = await self._cluster.get("ConfigMap", namespace, name)
        if found is None:
            return await self._cluster.create(body)
        # It was wanted before. Its data stay as they are, whatever this version would render.
        uid = found["metadata"]["uid"]
        return await self._cluster.annotate("ConfigMap", namespace, name, uid, ANNOTATION_ACTIVATED, now)
