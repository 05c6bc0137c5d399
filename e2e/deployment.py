"""One LLMDeployment of a scenario, as kubectl shows it: apply it, wait for it, look at its pods.

The engine is small on purpose: two cores carry three replicas, the routers and the client.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from e2e.kubectl import Cluster
from e2e.waiting import wait_until

Fields = dict[str, Any]

MODEL = "file:///models/SmolLM2-135M-Instruct.Q4_1.gguf"
READY_TIMEOUT_S = 240.0
LABEL_DEPLOYMENT = "serving.shoal.dev/deployment"
LABEL_REVISION = "serving.shoal.dev/revision"

SPEC: Fields = {
    "model": {"uri": MODEL},
    "replicas": 1,
    "engine": {"numThreads": 1, "maxModelLen": 512, "maxNumSeqs": 8, "kvCacheMemoryBytes": 64 * 2**20},
    "resources": {"acceleratorCount": 0, "requests": {"cpu": "100m", "memory": "500Mi"}},
    "cache": {"type": "HostPath", "path": "/var/lib/shoal/models"},
    "drain": {"timeoutSeconds": 60, "preStopDelaySeconds": 3},
    # Two cores are slow now and then; the scenarios are about lost requests, not about refused ones.
    "routing": {"overload": {"queueSeconds": 120}},
}


class Deployment:
    """`name` is also the served model's name."""

    def __init__(self, cluster: Cluster, name: str, **spec: Any) -> None:
        self.cluster = cluster
        self.name = name
        self.spec = merged(SPEC, spec)

    def manifest(self, **changes: Any) -> Fields:
        return {
            "apiVersion": "serving.shoal.dev/v1alpha1",
            "kind": "LLMDeployment",
            "metadata": {"name": self.name},
            "spec": merged(self.spec, changes),
        }

    def apply(self, **changes: Any) -> None:
        """`changes` are laid over the spec, and stay."""
        self.spec = merged(self.spec, changes)
        self.cluster.apply(self.manifest())

    def scale(self, replicas: int) -> None:
        """As a user would; a later apply keeps the number."""
        self.cluster.kubectl("scale", "llmd", self.name, f"--replicas={replicas}")
        self.spec["replicas"] = replicas

    def delete(self) -> None:
        """And wait until its pods are gone: the next scenario needs their cores."""
        self.cluster.delete("llmd", self.name)
        for pod in self.pods():
            # Nobody sends requests any more; the grace period is for those that do.
            self.cluster.delete("pod", pod["metadata"]["name"], "--grace-period=1", "--wait=false")
        wait_until(lambda: not self.pods(), f"no pod of {self.name}", 60.0)

    def found(self) -> Fields:
        return self.cluster.get("llmd", self.name)

    def status(self) -> Fields:
        return dict(self.found().get("status", {}))

    def condition(self, kind: str) -> Fields:
        """{} while it is absent."""
        return next((each for each in self.status().get("conditions", ()) if each["type"] == kind), {})

    def pods(self) -> list[Fields]:
        """Terminating ones too, by name."""
        listed = self.cluster.list("pods", f"{LABEL_DEPLOYMENT}={self.name}")
        return sorted(listed, key=lambda pod: str(pod["metadata"]["name"]))

    def uids(self) -> set[str]:
        return {pod["metadata"]["uid"] for pod in self.pods()}

    def wait_for(self, kind: str, status: str, reason: str, timeout_s: float = READY_TIMEOUT_S) -> Fields:
        """Until that condition of the newest generation is as given; returns it."""

        def holds() -> Fields | None:
            found = self.found()
            generation = found["metadata"]["generation"]
            for each in found.get("status", {}).get("conditions", ()):
                wanted = (kind, status, reason, generation)
                if (each["type"], each["status"], each["reason"], each["observedGeneration"]) == wanted:
                    return dict(each)
            return None

        return wait_until(holds, f"{self.name}: {kind}={status} {reason}", timeout_s, self.describe)

    def wait_settled(self, replicas: int, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Until exactly so many replicas exist, ready, all of the newest revision, and routers send requests to each."""

        def settled() -> bool:
            found = self.found()
            status = found.get("status", {})
            kinds = ("available", "routable", "updated", "desired")  # a router may be faster than the kubelet
            counts = {status.get(f"{kind}Replicas", 0) for kind in kinds}
            newest = status.get("observedGeneration") == found["metadata"]["generation"]
            return bool(newest) and counts == {replicas} and len(self.pods()) == replicas

        wait_until(settled, f"{self.name} with {replicas} replicas", timeout_s, self.describe)

    def describe(self) -> str:
        """For the report of a wait that failed."""
        return f"{json.dumps(self.status(), indent=1)}\n{self.cluster.describe()}"


def events(deployment: Deployment) -> set[str]:
    """Reasons of the events that tell of it."""
    selector = f"--field-selector=involvedObject.kind=LLMDeployment,involvedObject.name={deployment.name}"
    found = json.loads(deployment.cluster.kubectl("get", "events", selector, "-o", "json"))
    return {each["reason"] for each in found["items"]}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Fields:
    """`changes` over `base`, block by block; None takes a field away."""
    result = copy.deepcopy(dict(base))
    for name, value in changes.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, Mapping):
            result[name] = merged(result.get(name) or {}, value)
        else:
            result[name] = value
    return result
