"""LeaderWorkerSet as far as the operator needs it: its API by hand from its documentation, its controller played.

Fields, defaults and enumerations are those of leaderworkerset.x-k8s.io/v1. What a pod template may hold is left open
here: the pods themselves are checked by test_rendering.py.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from e2e.api_server.played_cluster import NAME, Fleet
from shoal_operator.cluster import Cluster

CRD_NAME = "leaderworkersets.leaderworkerset.x-k8s.io"
LABEL_SET = "leaderworkerset.sigs.k8s.io/name"
LABEL_WORKER = "leaderworkerset.sigs.k8s.io/worker-index"
OPEN = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
TEMPLATE = {
    "type": "object",
    "properties": {
        "metadata": OPEN,
        "spec": {
            "type": "object",
            "required": ["containers"],
            "properties": {"containers": {"type": "array", "minItems": 1, "items": OPEN}},
            "x-kubernetes-preserve-unknown-fields": True,
        },
    },
}
COUNT = {"type": "integer", "format": "int32"}


def _one_of(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values), "default": values[0]}


GROUP = {
    "type": "object",
    "required": ["workerTemplate"],
    "properties": {
        "leaderTemplate": TEMPLATE,
        "workerTemplate": TEMPLATE,
        "size": COUNT | {"default": 1},
        "restartPolicy": _one_of("RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None", "Default"),
    },
}
SPEC = {
    "type": "object",
    "required": ["leaderWorkerTemplate"],
    "properties": {
        "replicas": COUNT | {"default": 1},
        "leaderWorkerTemplate": GROUP,
        "startupPolicy": _one_of("LeaderCreated", "LeaderReady"),
        "networkConfig": {
            "type": "object",
            "required": ["subdomainPolicy"],
            "properties": {"subdomainPolicy": {"type": "string", "enum": ["Shared", "UniquePerReplica"]}},
        },
        "rolloutStrategy": {
            "type": "object",
            "required": ["type"],
            "properties": {"type": _one_of("RollingUpdate")},
        },
    },
}
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    # The API server takes *.k8s.io only with a word on the review.
    "metadata": {"name": CRD_NAME, "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"}},
    "spec": {
        "group": "leaderworkerset.x-k8s.io",
        "names": {"kind": "LeaderWorkerSet", "plural": "leaderworkersets", "singular": "leaderworkerset"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": SPEC}}},
            }
        ],
    },
}


class GroupFleet(Fleet):
    """A fleet with LeaderWorkerSet's controller: a leader and its workers for each set, none for a set that is gone."""

    slow = False  # the controller does nothing

    async def step(self) -> int:
        return (0 if self.slow else await self._control()) + await super().step()

    async def sets(self) -> list[dict]:
        return await Cluster(self.api).owned("LeaderWorkerSet", self.namespace, NAME)

    async def _control(self) -> int:
        sets = {each["metadata"]["name"]: each for each in await self.sets()}
        pods = {pod["metadata"]["name"]: pod for pod in await self.pods()}
        writes = 0
        for name, each in sets.items():
            for index in range(each["spec"]["leaderWorkerTemplate"]["size"]):
                pod = f"{name}-0" if index == 0 else f"{name}-0-{index}"
                if pod not in pods:
                    await Cluster(self.api).create(self._member(each, pod, index))
                    writes += 1
        for name, pod in pods.items():
            meta = pod["metadata"]
            is_orphan = meta["labels"].get(LABEL_SET, NAME) not in {*sets, NAME}  # a pod by itself has no set
            if is_orphan and not meta.get("deletionTimestamp"):
                await Cluster(self.api).delete("Pod", self.namespace, name, meta["uid"])
                writes += 1
        return writes

    def _member(self, group: dict, name: str, index: int) -> dict:
        """Its controller is a StatefulSet, as the real one's is."""
        template = group["spec"]["leaderWorkerTemplate"]["workerTemplate" if index else "leaderTemplate"]
        labels = {LABEL_SET: group["metadata"]["name"], LABEL_WORKER: str(index)}
        owner = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": name, "uid": str(uuid4())}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": template["metadata"]["labels"] | labels,
                "annotations": template["metadata"]["annotations"],
                "ownerReferences": [owner | {"controller": True}],
            },
            "spec": template["spec"],
        }
