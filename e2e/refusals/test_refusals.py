"""Manifests that are wrong, while a client streams: each is refused, or lands in SpecAccepted=False; what served goes on.

The wrong manifests are those of tests/api, where `shoal validate` must refuse them; here it is the API server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.deployment import Deployment
from e2e.kubectl import Cluster
from e2e.under_load import under_load
from e2e.waiting import wait_until

pytestmark = pytest.mark.timeout(900)

VECTORS = Path(__file__).parents[2] / "tests" / "api" / "vectors" / "invalid_manifests.yaml"
NAME = "smollm2"  # the one that a case names
# Valid as far as a schema goes. Laid over the spec that serves: (name, change, reason of SpecAccepted).
UNACCEPTABLE: list[tuple[str, dict[str, Any], str]] = [
    ("no volume holds the model", {"model": {"uri": "file:///elsewhere/m"}}, "ModelNotMounted"),
    ("an option as an extra argument", {"engine": {"extraArgs": ["--max-model-len=64"]}}, "InvalidExtraArgs"),
    ("the operator's own option", {"engine": {"extraArgs": ["--port=1"]}}, "InvalidExtraArgs"),
    (
        "more asked for than allowed",
        {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}},
        "InvalidResources",
    ),
    (
        "a mount without a volume",
        {"podTemplate": {"volumeMounts": [{"name": "x", "mountPath": "/x"}]}},
        "InvalidPodTemplate",
    ),
    (
        "a volume with the operator's name",
        {"podTemplate": {"volumes": [{"name": "shoal-tmp", "emptyDir": {}}]}},
        "InvalidPodTemplate",
    ),
    (
        "a volume of no kind that there is",
        {"podTemplate": {"volumes": [{"name": "x", "wormhole": {}}]}},
        "InvalidPodTemplate",
    ),
    (
        "a service account that is no name",
        {"podTemplate": {"serviceAccountName": "No Name"}},
        "InvalidPodTemplate",
    ),
]


@pytest.fixture(scope="module")
def serving(cluster: Cluster, installed: None) -> Iterator[Deployment]:
    made = Deployment(cluster, "serving")
    made.apply()
    try:
        made.wait_settled(1)
        yield made
    finally:
        made.delete()


def test_invalid_manifests(cluster: Cluster, serving: Deployment, router_url: str) -> None:
    cases = yaml.safe_load(VECTORS.read_text())
    before = serving.uids()
    taken = []
    with under_load("invalid manifests", router_url, [serving.name]):
        for case in cases:
            if not is_refused(cluster, case["manifest"] if "manifest" in case else manifest(case["spec"])):
                taken.append(case["name"])
                wait_until(lambda: is_rejected(cluster), f"SpecAccepted=False: {case['name']}", 60.0)
                cluster.kubectl("delete", "llmd", NAME)
    refused = len(cases) - len(taken)
    print(
        f"\n{len(cases)} manifests: {refused} refused by the API server, {len(taken)} by the operator: {taken}"
    )
    assert len(cases) >= 30
    assert refused >= 30
    assert serving.uids() == before


def test_unacceptable_changes_of_what_serves(serving: Deployment, router_url: str) -> None:
    before, good = serving.uids(), serving.spec
    with under_load("unacceptable changes", router_url, [serving.name]):
        for name, change, reason in UNACCEPTABLE:
            serving.apply(**change)
            condition = serving.wait_for("SpecAccepted", "False", reason, 60.0)
            print(f"\n{name}: {condition['message']}")
            assert serving.condition("Available")["status"] == "True"
            serving.spec = good
        serving.apply()
        serving.wait_for("SpecAccepted", "True", "Accepted", 60.0)
    assert serving.uids() == before


def manifest(spec: dict[str, Any]) -> dict[str, Any]:
    """As tests/api lays a case over a valid one: null stays null."""
    return {
        "apiVersion": "serving.shoal.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": NAME},
        "spec": {"model": {"uri": "hf://a/b"}, **spec},
    }


def is_refused(cluster: Cluster, document: object) -> bool:
    """Whether `kubectl apply` fails, as it does for a user."""
    try:
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(document))
    except AssertionError:
        return True
    return False


def is_rejected(cluster: Cluster) -> bool:
    conditions = cluster.get("llmd", NAME).get("status", {}).get("conditions", ())
    return any((each["type"], each["status"]) == ("SpecAccepted", "False") for each in conditions)
