"""Every call of the operator to Kubernetes: the only file of it that knows paths and verbs. Decides nothing.

All raise ApiError. Each write is complete in itself and may be repeated: creates have deterministic names, deletes and
patches name the UID (and version) they mean, everything else is a server-side apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal_api.kube import APPLY_PATCH, MERGE_PATCH, ApiError, ApiServer, Object
from shoal_api.names import (
    API_VERSION,
    FIELD_MANAGER_AUTOSCALER,
    FIELD_MANAGER_OPERATOR,
    LABEL_DEPLOYMENT,
    PLURAL,
)

MAX_EVENT_CHARS = 1024  # the API server refuses longer messages
LWS_API = "leaderworkerset.x-k8s.io/v1"
# kind -> apiVersion and plural of everything that the operator reads or makes
KINDS = {
    "LLMDeployment": (API_VERSION, PLURAL),
    "Pod": ("v1", "pods"),
    "Service": ("v1", "services"),
    "ConfigMap": ("v1", "configmaps"),
    "PersistentVolumeClaim": ("v1", "persistentvolumeclaims"),
    "PodDisruptionBudget": ("policy/v1", "poddisruptionbudgets"),
    "HorizontalPodAutoscaler": ("autoscaling/v2", "horizontalpodautoscalers"),
    "LeaderWorkerSet": (LWS_API, "leaderworkersets"),
    "Lease": ("coordination.k8s.io/v1", "leases"),
    "Event": ("v1", "events"),
}


def path_of(kind: str, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
    """The path of a collection, an object or a subresource; no namespace is all of them."""
    version, plural = KINDS[kind]
    root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    parts = [root, *(("namespaces", namespace) if namespace else ()), plural, name, subresource]
    return "/".join(part for part in parts if part)


class Cluster:
    """One API server, with the operator's own verbs."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object, or None when there is none."""
        try:
            return await self._api.request("GET", path_of(kind, namespace, name))
        except ApiError as error:
            if error.not_found:
                return None
            raise

    async def owned(self, kind: str, namespace: str, deployment: str) -> list[Object]:
        """All objects of a kind that carry the deployment's label, whoever owns them."""
        params = {"labelSelector": f"{LABEL_DEPLOYMENT}={deployment}"}
        reply = await self._api.request("GET", path_of(kind, namespace), params=params)
        return list(reply["items"])

    async def all(self, kind: str, namespace: str | None) -> list[Object]:
        """All objects of a kind in a namespace, or in all of them."""
        return list((await self._api.request("GET", path_of(kind, namespace)))["items"])

    async def served(self, api_version: str) -> bool:
        """Whether the API server knows this group and version."""
        try:
            await self._api.request("GET", f"/apis/{api_version}")
        except ApiError as error:
            if error.not_found:
                return False
            raise
        return True

    async def create(self, body: Object, *, dry_run: bool = False) -> Object:
        """Create an object; 409 AlreadyExists when its name is taken.

        A dry run only asks whether it would do, and refuses unknown fields too: a misspelt volume would be an empty one.
        """
        strictly = {"dryRun": "All", "fieldValidation": "Strict"} if dry_run else {}
        params = {"fieldManager": FIELD_MANAGER_OPERATOR, **strictly}
        path = path_of(body["kind"], body["metadata"]["namespace"])
        return await self._api.request("POST", path, body, params=params)

    async def apply(self, body: Object) -> Object:
        """Server-side apply: fields that we name are ours, others stay."""
        metadata = body["metadata"]
        return await self._api.request(
            "PATCH",
            path_of(body["kind"], metadata["namespace"], metadata["name"]),
            body,
            params={"fieldManager": FIELD_MANAGER_OPERATOR, "force": "true"},
            content_type=APPLY_PATCH,
        )

    async def annotate(
        self, kind: str, namespace: str, name: str, uid: str, annotation: str, value: str | None
    ) -> Object:
        """Set one annotation, or take it away (None).

        When it is another object by now the API server says 422 (metadata.uid is immutable), and nothing is changed.
        """
        metadata = {"uid": uid, "annotations": {annotation: value}}
        return await self._merge(
            path_of(kind, namespace, name), {"metadata": metadata}, FIELD_MANAGER_OPERATOR
        )

    async def delete(
        self, kind: str, namespace: str, name: str, uid: str, resource_version: str | None = None
    ) -> None:
        """Delete exactly this object (as it was read); gone already is well, another or a changed one is 409."""
        preconditions = {"uid": uid}
        if resource_version is not None:
            preconditions["resourceVersion"] = resource_version
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": preconditions,
            "propagationPolicy": "Background",
        }
        try:
            await self._api.request("DELETE", path_of(kind, namespace, name), body)
        except ApiError as error:
            if not error.not_found:
                raise

    async def write_status(self, found: Object, status: Mapping[str, Any]) -> Object:
        """Replace the status of an LLMDeployment as it was read; 409 when it has changed since."""
        metadata = found["metadata"]
        path = path_of("LLMDeployment", metadata["namespace"], metadata["name"], "status")
        body = {**found, "status": dict(status)}
        return await self._api.request("PUT", path, body, params={"fieldManager": FIELD_MANAGER_OPERATOR})

    async def scale(self, found: Object, replicas: int) -> Object:
        """Write spec.replicas through the scale subresource; 409 when the object has changed since it was read."""
        metadata = found["metadata"]
        body = {
            "metadata": {"resourceVersion": metadata["resourceVersion"]},
            "spec": {"replicas": replicas},
        }
        path = path_of("LLMDeployment", metadata["namespace"], metadata["name"], "scale")
        return await self._merge(path, body, FIELD_MANAGER_AUTOSCALER)

    async def post_event(self, about: Object, kind: str, reason: str, message: str, time: str) -> None:
        """Write an event (`kind` Normal or Warning) about an object; `time` is RFC 3339."""
        metadata = about["metadata"]
        reference = {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": metadata["namespace"], "generateName": f"{metadata['name']}."},
            "involvedObject": reference,
            "type": kind,
            "reason": reason,
            "message": message[:MAX_EVENT_CHARS],
            "source": {"component": FIELD_MANAGER_OPERATOR},
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        }
        await self._api.request("POST", path_of("Event", metadata["namespace"]), body)

    async def _merge(self, path: str, body: Object, manager: str) -> Object:
        params = {"fieldManager": manager}
        return await self._api.request("PATCH", path, body, params=params, content_type=MERGE_PATCH)


class LeaseObject:
    """The Lease that lease.py reads and writes."""

    def __init__(self, api: ApiServer, namespace: str, name: str) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name

    async def read(self) -> Object | None:
        return await Cluster(self._api).get("Lease", self._namespace, self._name)

    async def write(self, spec: Object, read: Object | None) -> Object:
        """Create it, or replace the one that was read; 409 when somebody else was first."""
        if read is None:
            metadata = {"namespace": self._namespace, "name": self._name}
            body = {"apiVersion": KINDS["Lease"][0], "kind": "Lease", "metadata": metadata, "spec": spec}
            return await self._api.request("POST", path_of("Lease", self._namespace), body)
        path = path_of("Lease", self._namespace, self._name)
        return await self._api.request("PUT", path, {**read, "spec": spec})
