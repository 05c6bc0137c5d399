"""What scenarios share: the cluster, Shoal installed on it, the address of its routers.

With KUBECONFIG the cluster is yours and SHOAL_REGISTRY says where its nodes find the images; without, `make cluster` and
`make images` bring both. What a failed test leaves is explained by the files in $E2E_OUT (default .cluster/e2e).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from e2e.kubectl import OWN_KUBECONFIG, ROOT, Cluster

__all__ = ["Cluster"]

Reporting = Generator[None, pytest.TestReport, pytest.TestReport]

OUT = Path(os.environ.get("E2E_OUT", ROOT / ".cluster" / "e2e"))
IMAGES = ROOT / ".cluster" / "images.yaml"  # chart values, written by `make images`
RELEASE = ("shoal", "charts/shoal", "--values", str(IMAGES), "--namespace", "default")
# Two cores carry operator, routers, three engines and the client.
SMALL = ("--set", "router.resources.requests.cpu=100m", "--set", "operator.resources.requests.cpu=50m")


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """A running cluster, with the newest images at hand."""
    given = os.environ.get("KUBECONFIG")
    if not given:
        subprocess.run(["make", "--silent", "cluster"], cwd=ROOT, check=True)
    if os.environ.get("E2E_IMAGES") != "keep" or not IMAGES.exists():
        subprocess.run(["make", "--silent", "images"], cwd=ROOT, check=True)
    return Cluster(Path(given) if given else OWN_KUBECONFIG)


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> None:
    """The chart, installed as release `shoal` in the namespace default; its pods are ready."""
    place_model()
    cluster.helm("upgrade", "--install", *RELEASE, *SMALL, "--wait", "--timeout", "5m")


@pytest.fixture
def router_url(cluster: Cluster, installed: None) -> str:
    """http://IP:8080/v1 of the routers' Service, reachable from this machine; e2e/install gives it another IP."""
    return f"http://{cluster.get('service', 'shoal-router')['spec']['clusterIP']}:8080/v1"


def place_model() -> None:
    """The model of the examples, where each node has it: a copy, because a pod sees no link's target."""
    subprocess.run(["bash", "e2e/cluster/model.sh"], cwd=ROOT, check=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Reporting:
    """Before a failed scenario tidies up, what the cluster looked like is written down."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and call.when != "teardown" and isinstance(cluster, Cluster):
        folder = OUT / item.name
        try:
            cluster.collect(folder)
            report.sections.append(("cluster", f"objects, events and logs: {folder}"))
        except Exception as error:
            report.sections.append(("cluster", f"nothing could be read from it: {error}"))
    return report
