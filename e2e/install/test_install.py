"""A platform engineer's first minutes: an empty cluster, one helm install, one manifest, an answer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.conftest import RELEASE, SMALL, place_model
from e2e.kubectl import ROOT, Cluster

pytestmark = pytest.mark.timeout(600)

MANIFEST = "examples/smollm2.yaml"
NAME = "smollm2"
MODEL = "smollm2-135m"
URL = "http://shoal-router.default:8080/v1/chat/completions"
# It lingers for a moment: kubectl attaches when the pod runs, and what one that has ended had said is lost.
ASK = f"""
import json, time, urllib.request
body = {{"model": "{MODEL}", "max_tokens": 16, "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}
request = urllib.request.Request("{URL}", json.dumps(body).encode(), {{"content-type": "application/json"}})
print(urllib.request.urlopen(request, timeout=120).read().decode(), flush=True)
time.sleep(3)
"""


@pytest.fixture
def fresh(cluster: Cluster) -> Iterator[Cluster]:
    """No trace of Shoal but its images and the model's file, as on the first day. In the end the release stays."""
    if any(each["name"] == "shoal" for each in json.loads(cluster.helm("list", "-o", "json"))):
        cluster.kubectl("delete", "llmd", "--all", "--wait=true")
        cluster.helm("uninstall", "shoal", "--wait")
    cluster.kubectl("delete", "crd", "llmdeployments.serving.shoal.dev", "--ignore-not-found")
    cluster.wait(lambda: not cluster.list("pods"), 120.0, "an empty cluster")
    place_model()
    yield cluster
    cluster.delete("llmd", NAME)


def test_from_nothing_to_an_answer(fresh: Cluster) -> None:
    steps = Steps(fresh)
    steps.type("helm", "install", *RELEASE, *SMALL, "--wait", "--timeout", "5m")
    steps.type("kubectl", "apply", "-f", MANIFEST)
    steps.type("kubectl", "wait", "--for=condition=Available", f"llmd/{NAME}", "--timeout=240s")
    answer = json.loads(steps.type(*client_pod(fresh)).splitlines()[-1])

    steps.show()
    (choice,) = answer["choices"]
    assert answer["model"] == MODEL
    assert choice["message"]["content"].strip()
    assert answer["usage"]["completion_tokens"] > 0
    status = fresh.get("llmd", NAME)["status"]
    assert status["url"] == URL.removesuffix("/chat/completions")
    assert status["routableReplicas"] == 2


def client_pod(cluster: Cluster) -> tuple[str, ...]:
    """The command of an application team: a pod that asks by the Service's name. Its image is one at hand, with Python."""
    router = cluster.get("deployment", "shoal-router")["spec"]["template"]["spec"]["containers"][0]
    container: dict[str, Any] = {
        "name": "client",
        "image": router["image"],
        "command": ["python3", "-c", ASK],
    }
    overrides = json.dumps({"spec": {"containers": [container]}})
    run = ("kubectl", "run", "client", "--rm", "--attach", "--quiet", "--restart=Never")
    return (*run, f"--image={router['image']}", f"--overrides={overrides}")


class Steps:
    """What was typed, and how long each command took."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._took: list[tuple[str, float]] = []

    def type(self, *command: str) -> str:
        begin = time.monotonic()
        said = self._cluster.run(*command)
        self._took.append((" ".join(command[:5]).replace(f"{ROOT}/", ""), time.monotonic() - begin))
        return said

    def show(self) -> None:
        print(f"\nfrom an empty cluster to an answer: {len(self._took)} commands,", end=" ")
        print(f"{sum(took for _, took in self._took):.1f} s", flush=True)
        for command, took in self._took:
            print(f"  {took:6.1f} s  {command}", flush=True)
