"""`shoal operator` as a process against a real API server: from an applied manifest to pods, and its probes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import yaml

from shoal_api.kube import ApiServer
from shoal_operator.cluster import Cluster, path_of

ROOT = Path(__file__).parents[2]
NAME = "smollm2"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Operator:
    """One `shoal operator` process."""

    def __init__(self, kubeconfig: Path, namespace: str, log: Path) -> None:
        self.probes = f"http://127.0.0.1:{free_port()}"
        self.log = log
        command = [sys.executable, "-m", "shoal_operator", f"--namespace={namespace}", "--engine-image=e:1"]
        command += [f"--release-namespace={namespace}", f"--probe-port={self.probes.rsplit(':', 1)[1]}"]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=output, env={**os.environ, "KUBECONFIG": str(kubeconfig)}
            )

    def end(self, *, kill: bool = False) -> int:
        (self.process.kill if kill else self.process.terminate)()
        return self.process.wait(20)


@pytest.fixture
async def api(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    async with ApiServer.from_env() as server:
        await install_crd(server)
        yield server


async def install_crd(api: ApiServer) -> None:
    crd = yaml.safe_load((ROOT / "crds" / "llmdeployments.serving.shoal.dev.yaml").read_text())
    crd["apiVersion"], crd["kind"] = "apiextensions.k8s.io/v1", "CustomResourceDefinition"
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
    params = {"fieldManager": "test", "force": "true"}
    await api.request("PATCH", path, crd, params=params, content_type="application/apply-patch+yaml")
    while not await Cluster(api).served("serving.shoal.dev/v1alpha1"):
        time.sleep(0.1)


def eventually(what: Callable[[], object], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if what():
            return
        time.sleep(0.2)
    pytest.fail("it did not come true in time")


async def pods(api: ApiServer, namespace: str, count: int, log: Path) -> list[str]:
    """The names, as soon as there are `count` pods."""
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        found = await Cluster(api).owned("Pod", namespace, NAME)
        if len(found) == count:
            return sorted(pod["metadata"]["name"] for pod in found)
        time.sleep(0.2)
    pytest.fail(f"there are {len(found)} pods, not {count}:\n{log.read_text()[-3000:]}")


async def test_a_manifest_becomes_pods_and_a_killed_operator_has_a_successor(
    api: ApiServer, kubeconfig: Path, tmp_path: Path
):
    namespace = f"n-{uuid4().hex[:8]}"
    await api.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    manifest = yaml.safe_load((ROOT / "examples" / "smollm2.yaml").read_text())
    manifest["metadata"]["namespace"] = namespace
    log = tmp_path / "operator.log"
    first = Operator(kubeconfig, namespace, log)
    try:
        await api.request("POST", path_of("LLMDeployment", namespace), manifest)
        names = await pods(api, namespace, 2, log)
        eventually(lambda: httpx.get(f"{first.probes}/healthz").json()["leader"])
        metrics = httpx.get(f"{first.probes}/metrics").text
        assert "shoal_operator_watch_age_seconds" in metrics
        assert "shoal_operator_leader 1.0" in metrics
    finally:
        first.end(kill=True)
    second = Operator(kubeconfig, namespace, log)
    try:
        found = await Cluster(api).get("LLMDeployment", namespace, NAME)
        assert found is not None
        await Cluster(api).scale(found, 3)
        assert set(names) < set(await pods(api, namespace, 3, log))
    finally:
        assert second.end() == 0
    assert "Traceback" not in log.read_text()


def test_without_a_cluster_it_says_what_to_do(tmp_path: Path):
    (tmp_path / "config").write_text("apiVersion: v1\nkind: Config\nclusters: []\ncontexts: []\nusers: []\n")
    done = subprocess.run(
        [sys.executable, "-m", "shoal_operator"],
        env={**os.environ, "KUBECONFIG": str(tmp_path / "config")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "set KUBECONFIG to a file with a current-context" in done.stderr
