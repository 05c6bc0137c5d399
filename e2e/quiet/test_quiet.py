"""While nothing happens the operator writes nothing: no object of Shoal changes, no event is posted.

Its Lease is renewed all the time and is left out. $E2E_QUIET_S shortens the five minutes where time is short.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from e2e.deployment import Deployment
from e2e.kubectl import Cluster
from e2e.under_load import ask

pytestmark = pytest.mark.timeout(900)

QUIET_S = float(os.environ.get("E2E_QUIET_S", "300"))
KINDS = "llmd,pods,services,configmaps,poddisruptionbudgets,persistentvolumeclaims,deployments"
OPERATOR = "shoal-operator"


def test_no_writes(cluster: Cluster, installed: None, router_url: str) -> None:
    always = Deployment(cluster, "quiet", replicas=2)
    scaled = Deployment(cluster, "quiet-scaled", autoscaling={"minReplicas": 1, "maxReplicas": 2})
    always.apply()
    scaled.apply()
    try:
        always.wait_settled(2)
        scaled.wait_settled(1)
        assert ask(router_url, "quiet-scaled").status == 200
        time.sleep(20)  # the last request's load has left the status
        before, requests = objects(cluster), writes(cluster)
        time.sleep(QUIET_S)
        after, later = objects(cluster), writes(cluster)
        changed = [name for name in before if after.get(name) != before[name]]
        print(f"\n{len(before)} objects watched for {QUIET_S:.0f} s: {len(changed)} changed")
        sent = {name: later[name] - requests.get(name, 0.0) for name in later}
        print(
            f"write requests to the API server, of everybody: {({k: v for k, v in sent.items() if v}) or 'none'}"
        )
        assert {name: differing(before[name], after.get(name, {})) for name in changed} == {}
        assert sorted(after) == sorted(before)
    finally:
        always.delete()
        scaled.delete()


def objects(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Every object of the release's namespace and the operator's events, by kind and name."""
    found = json.loads(cluster.kubectl("get", KINDS, "-o", "json"))["items"]
    posted = json.loads(cluster.kubectl("get", "events", "-o", "json"))["items"]
    found += [each for each in posted if each.get("source", {}).get("component") == OPERATOR]
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in found}


def differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Top-level fields that are not the same, and who wrote last."""
    fields = [name for name in before if before[name] != after.get(name)]
    managers = sorted(after.get("metadata", {}).get("managedFields", ()), key=lambda each: each["time"])
    return [*fields, *[f"{each['manager']} at {each['time']}" for each in managers[-1:]]]


def writes(cluster: Cluster) -> dict[str, float]:
    """Requests that write, as the API server counts them, by verb and resource; those of nodes and Leases left out."""
    counts: dict[str, float] = {}
    for line in cluster.kubectl("get", "--raw", "/metrics").splitlines():
        if not line.startswith("apiserver_request_total{"):
            continue
        labels = dict(part.split("=", 1) for part in line[line.index("{") + 1 : line.index("}")].split(","))
        verb, resource = labels["verb"].strip('"'), labels["resource"].strip('"')
        if verb in ("POST", "PUT", "PATCH", "APPLY", "DELETE") and resource not in (
            "leases",
            "nodes",
            "tokenreviews",
        ):
            name = f"{verb} {resource} {labels['subresource'].strip(chr(34))}".strip()
            counts[name] = counts.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
    return counts
