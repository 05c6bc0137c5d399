"""The router pods as operators of a cluster see them: which are ready, and what their /metrics say.

Every router counts for itself; a scenario adds up, or asks each. It is no Prometheus: one sample, no history.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import httpx

from e2e.kubectl import Cluster

ROUTERS = "serving.shoal.dev/role=router"
LINE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Router:
    """One ready pod; `url` has no path."""

    name: str
    url: str

    def metric(self, name: str, label: str) -> dict[str, float]:
        """Samples of the metric `shoal_router_NAME` by the value of `label`."""
        found = {}
        for line in LINE.finditer(httpx.get(f"{self.url}/metrics", trust_env=False).text):
            labels = dict(LABEL.findall(line["labels"] or ""))
            if line["name"] == f"shoal_router_{name}":
                found[labels.get(label, "")] = float(line["value"])
        return found

    def links_exactly(self, replicas: set[str]) -> bool:
        """Whether it knows these replicas (NAMESPACE/POD) and no other, and each one's engine pushes load and cache."""
        return self.metric("replica_link_up", "replica") == dict.fromkeys(replicas, 1.0)


def ready_routers(cluster: Cluster) -> list[Router]:
    """Those that are not ending, by name."""
    found = [
        Router(pod["metadata"]["name"], f"http://{pod['status']['podIP']}:8080")
        for pod in cluster.list("pods", ROUTERS)
        if "deletionTimestamp" not in pod["metadata"]
        and any(
            each["type"] == "Ready" and each["status"] == "True"
            for each in pod["status"].get("conditions", ())
        )
    ]
    return sorted(found, key=lambda router: router.name)


def metric_of_all(cluster: Cluster, name: str, label: str) -> dict[str, float]:
    """The metric of every ready router, added up."""
    total: dict[str, float] = {}
    for router in ready_routers(cluster):
        for key, value in router.metric(name, label).items():
            total[key] = total.get(key, 0.0) + value
    return total
