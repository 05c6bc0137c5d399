"""What helm makes of the chart."""

from __future__ import annotations

import functools
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.binary import k8s
from shoal_api.names import PORT_ENGINE_GRPC
from shoal_api.options import RouterOptions

CHART = Path(__file__).resolve().parents[2] / "charts" / "shoal"
VARIANTS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "namespaces": ("--set", "namespaces={red,blue}"),
    "everywhere": ("--set", "namespaces={*}"),
    "everything": (
        *("--set", "monitoring.podMonitor.enabled=true", "--set", "monitoring.prometheusRule.enabled=true"),
        *("--set", "monitoring.dashboard.enabled=true", "--set", "leaderWorkerSets.enabled=true"),
        *("--set", "router.optionsSecret=options", "--set", "router.extraArgs={--max-retries=1}"),
        *("--set", "router.apiKeys.existingSecret=keys", "--set", "router.accessLog=true"),
        *("--set", "tracing.endpoint=http://collector:4318"),
        *("--set", "imagePullSecrets={pull}", "--set", "router.nodeSelector.disk=ssd"),
        *("--set-json", 'networkPolicy.metricsFrom=[{"namespaceSelector":{}}]'),
    ),
}
# Alerts of the whole installation: their texts name no pod and no model.
WITHOUT_LABELS = {"ShoalOperatorGone", "ShoalRequestQuarantined"}
CLUSTER_WIDE = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}

variants = pytest.mark.parametrize("variant", VARIANTS)


@functools.cache
def rendered(variant: str) -> list[dict[str, Any]]:
    command = [k8s(), "helm", "template", "fleet", str(CHART), "--namespace", "system", *VARIANTS[variant]]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return [document for document in yaml.safe_load_all(result.stdout) if document]


def of(variant: str, kind: str) -> list[dict[str, Any]]:
    return [document for document in rendered(variant) if document["kind"] == kind]


@variants
def test_every_object_is_named_once_and_placed(variant: str) -> None:
    places = [(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in rendered(variant)]
    assert max(Counter(places).values()) == 1
    for kind, namespace, _ in places:
        assert (namespace is None) == (kind in CLUSTER_WIDE)


@variants
def test_pods_are_restricted(variant: str) -> None:
    deployments = of(variant, "Deployment")
    assert len(deployments) == 2
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["enableServiceLinks"] is False
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        assert all(volume.keys() & {"emptyDir", "secret"} for volume in pod["volumes"])
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


@variants
def test_selectors_find_their_pods(variant: str) -> None:
    pods = [d["spec"]["template"]["metadata"]["labels"] for d in of(variant, "Deployment")]
    own = [d["spec"]["selector"]["matchLabels"] for d in of(variant, "Deployment")]
    own += [d["spec"]["selector"]["matchLabels"] for d in of(variant, "PodDisruptionBudget")]
    own += [d["spec"]["selector"] for d in of(variant, "Service")]
    for selector in own:
        assert sum(selector.items() <= labels.items() for labels in pods) == 1


@variants
def test_rights_are_few(variant: str) -> None:
    roles = of(variant, "Role") + of(variant, "ClusterRole")
    rules = [rule for role in roles for rule in role["rules"]]
    assert rules
    for rule in rules:
        assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
        assert not {"secrets", "nodes", "pods/exec", "serviceaccounts", "namespaces"} & set(rule["resources"])
        assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(rule["verbs"])


@variants
def test_the_operator_may_do_what_its_calls_need(variant: str) -> None:
    """Each pair is a call in cluster.py or of the watch; a missing one shows on a real API server only."""
    roles = of(variant, "Role") + of(variant, "ClusterRole")
    rules = [rule for d in roles if d["metadata"]["name"].startswith("shoal-operator") for rule in d["rules"]]
    granted = {(r, verb) for rule in rules for r in rule["resources"] for verb in rule["verbs"]}
    applied = ("services", "configmaps", "persistentvolumeclaims", "poddisruptionbudgets")
    needed = {(kind, verb) for kind in applied for verb in ("get", "list", "create", "patch")}
    needed |= {("pods", verb) for verb in ("get", "list", "create", "patch", "delete")}
    needed |= {("llmdeployments", verb) for verb in ("get", "list", "watch")}
    needed |= {("llmdeployments/status", "update"), ("llmdeployments/scale", "patch")}
    needed |= {("leases", verb) for verb in ("get", "create", "update")}
    needed |= {("events", "create"), ("horizontalpodautoscalers", "list"), ("configmaps", "delete")}
    assert not needed - granted


@variants
def test_bindings_bind_roles_that_exist(variant: str) -> None:
    accounts = {d["metadata"]["name"] for d in of(variant, "ServiceAccount")}
    for binding_kind, kind in (("RoleBinding", "Role"), ("ClusterRoleBinding", "ClusterRole")):
        roles = {(d["metadata"].get("namespace"), d["metadata"]["name"]) for d in of(variant, kind)}
        bound = set()
        for binding in of(variant, binding_kind):
            assert binding["roleRef"]["kind"] == kind
            bound.add((binding["metadata"].get("namespace"), binding["roleRef"]["name"]))
            assert all(s["namespace"] == "system" and s["name"] in accounts for s in binding["subjects"])
        assert bound == roles


@pytest.mark.parametrize(
    ("variant", "served", "cluster_roles"),
    [("defaults", {"system"}, 0), ("namespaces", {"red", "blue"}, 0), ("everywhere", set(), 2)],
)
def test_rights_reach_the_served_namespaces_only(variant: str, served: set[str], cluster_roles: int) -> None:
    roles = [d["metadata"] for d in of(variant, "Role") if d["metadata"]["name"] != "shoal-operator-home"]
    assert {role["namespace"] for role in roles} == served
    assert len(of(variant, "ClusterRole")) == cluster_roles


@pytest.mark.parametrize(
    ("variant", "served"),
    [("defaults", ["system"]), ("namespaces", ["red", "blue"]), ("everywhere", ["*"])],
)
def test_programs_are_told_their_namespaces(variant: str, served: list[str]) -> None:
    for deployment in of(variant, "Deployment"):
        args = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
        assert [a.removeprefix("--namespace=") for a in args if a.startswith("--namespace=")] == served


def test_a_router_has_time_to_drain() -> None:
    (router,) = (d for d in of("defaults", "Deployment") if d["metadata"]["name"] == "shoal-router")
    pod = router["spec"]["template"]["spec"]
    flags = dict(a.partition("=")[::2] for a in pod["containers"][0]["args"])
    delay, drain = int(flags["--drain-delay-s"]), int(flags["--drain-timeout-s"])
    assert delay > 0, "the cluster needs time to send nobody there any more"
    assert pod["terminationGracePeriodSeconds"] > delay + drain
    assert router["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_only_the_operator_reads_router_state() -> None:
    (policy,) = (d for d in of("defaults", "NetworkPolicy") if d["metadata"]["name"] == "shoal-router")
    (state,) = (rule for rule in policy["spec"]["ingress"] if {"port": 9000} in rule["ports"])
    (peer,) = state["from"]
    assert peer["podSelector"]["matchLabels"]["serving.shoal.dev/role"] == "operator"
    assert "namespaceSelector" not in peer


def test_routers_alone_read_engine_state() -> None:
    """On the port that the engines' pods have for it."""
    (policy,) = (d for d in of("defaults", "NetworkPolicy") if d["metadata"]["name"] == "shoal-engines")
    (state,) = (rule for rule in policy["spec"]["ingress"] if {"port": PORT_ENGINE_GRPC} in rule["ports"])
    (peer,) = state["from"]
    assert peer["podSelector"] == {"matchLabels": {"serving.shoal.dev/role": "router"}}
    assert peer["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "system"}}


def test_values_reach_the_router() -> None:
    """Each Secret is mounted as a folder: one that is mounted as a single file never changes."""
    (router,) = (d for d in of("everything", "Deployment") if d["metadata"]["name"] == "shoal-router")
    pod = router["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    secrets = {v["name"]: v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
    assert set(secrets.values()) == {"options", "keys"}
    mounts = {m["mountPath"]: secrets[m["name"]] for m in container["volumeMounts"] if m["name"] in secrets}
    assert mounts == {"/etc/shoal": "options", "/etc/shoal-keys": "keys"}
    assert not any("subPath" in mount for mount in container["volumeMounts"])
    options = RouterOptions.model_fields.keys()
    flags = dict(a.removeprefix("--").partition("=")[::2] for a in container["args"] if a != "router")
    assert {flag.replace("-", "_") for flag in flags} - {"config", "namespace"} <= options
    assert flags["api-keys-file"] == "/etc/shoal-keys/keys.yaml"
    assert flags["otlp-endpoint"] == "http://collector:4318"
    assert "access-log" in flags


def test_the_crd_outlives_the_release() -> None:
    (definition,) = of("defaults", "CustomResourceDefinition")
    assert definition["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_alerts_and_dashboard_survive_templating() -> None:
    (rule,) = of("everything", "PrometheusRule")
    alerts = rule["spec"]["groups"][0]["rules"]
    assert all(alert["expr"] and "{{ " in alert["annotations"]["summary"] + alert["annotations"]["description"]
               for alert in alerts if alert["alert"] not in WITHOUT_LABELS)  # fmt: skip
    (dashboard,) = (d for d in of("everything", "ConfigMap") if d["metadata"]["name"] == "shoal-dashboard")
    assert json.loads(dashboard["data"]["shoal.json"])["panels"]
    assert {d["metadata"]["name"] for d in of("everything", "PodMonitor")} == {
        f"shoal-{role}" for role in ("engine", "router", "operator")
    }


def test_a_mistake_in_values_is_refused() -> None:
    command = [k8s(), "helm", "template", "fleet", str(CHART), "--set", "router.replicas=0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0
    assert "replicas" in result.stderr
