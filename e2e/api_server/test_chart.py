"""The chart on a real API server: it installs, its pods pass Pod Security, its accounts may do what they must and no more."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from e2e.binary import k8s

CHART = Path(__file__).resolve().parents[2] / "charts" / "shoal"


def run(*command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def kubectl(kubeconfig: Path) -> tuple[str, ...]:
    """`kubectl`, as administrator of a cluster in which the chart is installed for the namespace `red`."""
    kubectl = (k8s(), "kubectl", "--kubeconfig", str(kubeconfig))
    for namespace in ("system", "red", "blue"):
        assert run(*kubectl, "create", "namespace", namespace).returncode == 0
    label = "pod-security.kubernetes.io/enforce=restricted"
    assert run(*kubectl, "label", "namespace", "system", label).returncode == 0
    flags = ("--kubeconfig", str(kubeconfig), "--namespace", "system", "--set", "namespaces={red}")
    installed = run(k8s(), "helm", "install", "fleet", str(CHART), *flags)
    assert installed.returncode == 0, installed.stderr
    assert "v1/chat/completions" in installed.stdout
    return kubectl


def test_pods_pass_restricted(kubectl: tuple[str, ...]) -> None:
    listed = run(*kubectl, "get", "deployments", "-n", "system", "-o", "yaml")
    deployments = yaml.safe_load(listed.stdout)["items"]
    assert len(deployments) == 2
    for deployment in deployments:
        metadata = {"name": "probe", "namespace": "system"}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": deployment["spec"]["template"]["spec"],
        }
        created = run(*kubectl, "create", "--dry-run=server", "-f", "-", given=yaml.safe_dump(pod))
        assert created.returncode == 0, created.stderr


@pytest.mark.parametrize(
    ("account", "namespace", "verb", "resource", "expected"),
    [
        ("operator", "red", "create", "pods", "yes"),
        ("operator", "red", "update", "llmdeployments.serving.shoal.dev/status", "yes"),
        ("operator", "red", "patch", "llmdeployments.serving.shoal.dev/scale", "yes"),
        ("operator", "system", "update", "leases.coordination.k8s.io/shoal-operator", "yes"),
        ("operator", "system", "update", "leases.coordination.k8s.io/other", "no"),
        ("operator", "system", "create", "pods", "no"),
        ("operator", "system", "watch", "pods", "yes"),
        ("operator", "blue", "get", "pods", "no"),
        ("operator", "red", "get", "secrets", "no"),
        ("operator", "red", "create", "pods/exec", "no"),
        ("router", "red", "watch", "pods", "yes"),
        ("router", "red", "watch", "llmdeployments.serving.shoal.dev", "yes"),
        ("router", "red", "patch", "pods", "no"),
        ("router", "blue", "list", "pods", "no"),
    ],
)
def test_rights(
    kubectl: tuple[str, ...], account: str, namespace: str, verb: str, resource: str, expected: str
) -> None:
    resource, _, rest = resource.partition("/")
    named = rest if rest not in ("status", "scale", "exec") else ""
    flags = () if named or not rest else (f"--subresource={rest}",)
    target = f"{resource}/{named}" if named else resource
    user = f"--as=system:serviceaccount:system:shoal-{account}"
    answer = run(*kubectl, "auth", "can-i", verb, target, "-n", namespace, user, *flags)
    assert answer.stdout.strip() == expected, answer.stderr
