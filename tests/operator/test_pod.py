"""Rendered pods: the restricted profile rule by rule over every example, and what the manifest asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal_api import names
from shoal_api.model_cache import cache_path, model_path
from shoal_api.spec import LLMDeployment
from shoal_operator.leader_worker_set import render_group
from shoal_operator.pod import render

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
PERMITTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def parse(spec: dict[str, Any], **metadata: Any) -> LLMDeployment:
    uri = {"uri": "hf://Qwen/Qwen3-8B"}
    spec = {**spec, "model": {**uri, **spec.get("model", {})}}
    return LLMDeployment.parse({"metadata": {"name": "chat", "uid": "u-1", **metadata}, "spec": spec})


def pod(spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return render(parse(spec, **metadata), "0123456789", 2, "engine:1", "9.9")


def engine_of(rendered: dict[str, Any]) -> dict[str, Any]:
    (engine,) = rendered["spec"]["containers"]
    return engine


def environment(container: dict[str, Any]) -> dict[str, Any]:
    variables = {variable["name"]: variable for variable in container["env"]}
    assert len(variables) == len(container["env"]), "a name stands twice"
    return variables


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.stem)
def example(request) -> LLMDeployment:
    return LLMDeployment.parse(yaml.safe_load(request.param.read_text()))


@pytest.fixture
def specs(example) -> list[dict[str, Any]]:
    group = render_group(example, "0123456789", 0, "engine:1", "9.9")["spec"]["leaderWorkerTemplate"]
    return [
        render(example, "0123456789", 0, "engine:1", "9.9")["spec"],
        group["leaderTemplate"]["spec"],
        group["workerTemplate"]["spec"],
    ]


def test_restricted_profile(example, specs):
    for spec in specs:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 65532
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "sysctls" not in spec["securityContext"]
        for container in spec["containers"] + spec["initContainers"]:
            security = container["securityContext"]
            assert not {"runAsNonRoot", "runAsUser", "seccompProfile"} & set(security), "the pod's hold"
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True
            assert "privileged" not in security
            assert "procMount" not in security
            assert all("hostPort" not in port for port in container.get("ports", ()))
        for volume in spec["volumes"]:
            (kind,) = set(volume) - {"name"}
            asked_for = kind == "hostPath" and example.spec.cache.type == "HostPath"
            assert kind in PERMITTED_VOLUMES or asked_for, "only the user may open the node's disk"


def test_no_token_no_service_links_and_room_to_write(specs):
    for spec in specs:
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert len(volumes) == len(spec["volumes"])
        for container in spec["containers"] + spec["initContainers"]:
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            assert len(mounts) == len(container["volumeMounts"])
            assert {mount["name"] for mount in mounts.values()} <= set(volumes)
            assert volumes[mounts["/tmp"]["name"]]["emptyDir"]["sizeLimit"]
            assert not mounts["/tmp"].get("readOnly")
            for name in ("HOME", "XDG_CACHE_HOME"):
                assert Path(environment(container)[name]["value"]).is_relative_to("/tmp")
        shared = {mount["mountPath"]: mount["name"] for mount in spec["containers"][0]["volumeMounts"]}[
            "/dev/shm"
        ]
        assert volumes[shared]["emptyDir"]["medium"] == "Memory"


def test_it_is_json(specs):
    assert json.loads(json.dumps(specs)) == specs


def test_names_labels_and_owner():
    labels = {"team": "a", names.LABEL_NAME: "mine"}
    metadata = pod({"podTemplate": {"metadata": {"labels": labels, "annotations": {"x": "y"}}}})["metadata"]
    assert metadata["name"] == "chat-0123456789-2"
    assert metadata["namespace"] == "default"
    assert metadata["labels"] == {
        "team": "a",
        "app.kubernetes.io/name": "shoal",
        "app.kubernetes.io/instance": "chat",
        "app.kubernetes.io/managed-by": "shoal",
        "serving.shoal.dev/deployment": "chat",
        "serving.shoal.dev/revision": "0123456789",
        "serving.shoal.dev/slot": "2",
        "serving.shoal.dev/role": "engine",
    }
    assert metadata["annotations"] == {"x": "y", names.ANNOTATION_OPERATOR: "9.9"}
    (owner,) = metadata["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("LLMDeployment", "u-1")
    assert owner["controller"]
    assert owner["blockOwnerDeletion"]


def test_accelerators_are_limits_of_the_engine_alone():
    rendered = pod({"parallelism": {"tensor": 4}, "resources": {"limits": {"memory": "8Gi"}}})
    assert engine_of(rendered)["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": "4"}
    (loader,) = rendered["spec"]["initContainers"]
    assert loader["resources"]["limits"] == {"memory": "8Gi"}
    assert "limits" not in pod({"resources": {"acceleratorCount": 0}})["spec"]
    assert not engine_of(pod({"resources": {"acceleratorCount": 0}}))["resources"]["limits"]


def test_the_image_of_the_manifest_wins():
    assert engine_of(pod({}))["image"] == "engine:1"
    assert engine_of(pod({"engine": {"image": "mine:2"}}))["image"] == "mine:2"


@pytest.mark.parametrize(("timeout_s", "delay_s"), [(300, 5), (0, 0), (86_400, 600), (7, 0)])
def test_the_grace_period_covers_the_drain(timeout_s, delay_s):
    rendered = pod({"drain": {"timeoutSeconds": timeout_s, "preStopDelaySeconds": delay_s}})
    assert rendered["spec"]["terminationGracePeriodSeconds"] == timeout_s + delay_s + 15
    hooks = engine_of(rendered).get("lifecycle")
    assert hooks == ({"preStop": {"sleep": {"seconds": delay_s}}} if delay_s else None)


def test_probes_allow_for_a_long_load():
    engine = engine_of(pod({}))
    startup = engine["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 3600
    assert startup["httpGet"]["path"] == engine["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert engine["livenessProbe"]["httpGet"]["path"] == "/health"
    assert {port["name"]: port["containerPort"] for port in engine["ports"]} == {"http": 8000, "grpc": 9000}


def test_the_loader_gets_the_token_and_the_engine_does_not():
    rendered = pod({"model": {"revision": "v1", "tokenSecretRef": {"name": "s"}}})
    (loader,) = rendered["spec"]["initContainers"]
    assert loader["name"] == "model-loader"
    assert loader["command"][:5] == ["shoal", "fetch", "hf://Qwen/Qwen3-8B", "--revision", "v1"]
    reference = environment(loader)["HF_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "s", "key": "token"}
    assert "HF_TOKEN" not in environment(engine_of(rendered))


def test_each_source_is_fetched_once():
    adapters = [
        {"name": "a", "uri": "s3://b/a"},
        {"name": "b", "uri": "s3://b/a"},
        {"name": "c", "uri": "oci://r/c"},
    ]
    loaders = pod({"adapters": adapters})["spec"]["initContainers"]
    assert [loader["command"][2] for loader in loaders] == ["hf://Qwen/Qwen3-8B", "s3://b/a", "oci://r/c"]
    assert [loader["name"] for loader in loaders] == ["model-loader", "model-loader-1", "model-loader-2"]


def test_a_claim_is_mounted_read_only_where_the_options_look():
    rendered = pod({"model": {"uri": "pvc://weights/qwen/x.gguf"}})
    assert rendered["spec"]["initContainers"] == []
    claims = [v for v in rendered["spec"]["volumes"] if "persistentVolumeClaim" in v]
    assert [claim["persistentVolumeClaim"] for claim in claims] == [
        {"claimName": "weights", "readOnly": True}
    ]
    (mount,) = [m for m in engine_of(rendered)["volumeMounts"] if m["name"] == claims[0]["name"]]
    assert mount["readOnly"] is True
    assert model_path("pvc://weights/qwen/x.gguf") == f"{mount['mountPath']}/qwen/x.gguf"


def test_an_image_is_mounted_where_a_loader_would_put_it():
    uri = "oci://registry/model:1"
    rendered = pod({"model": {"uri": uri}, "cache": {"type": "Image"}})
    assert rendered["spec"]["initContainers"] == []
    (volume,) = [v for v in rendered["spec"]["volumes"] if "image" in v]
    assert volume["image"]["reference"] == "registry/model:1"
    (mount,) = [m for m in engine_of(rendered)["volumeMounts"] if m["name"] == volume["name"]]
    assert mount["mountPath"] == model_path(uri)


def test_the_users_template_is_laid_over():
    spread = [{"maxSkew": 2}]
    template = {
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9}],
        "topologySpreadConstraints": spread,
        "securityContext": {"fsGroup": 7},
        "imagePullSecrets": [{"name": "pull"}],
        "priorityClassName": "high",
        "volumes": [{"name": "data", "emptyDir": {}}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    rendered = pod({"podTemplate": template, "engine": {"env": [{"name": "HOME", "value": "/data"}]}})
    spec = rendered["spec"]
    assert spec["tolerations"] == template["tolerations"]
    assert spec["topologySpreadConstraints"] == spread
    assert spec["securityContext"]["fsGroup"] == 7
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert spec["priorityClassName"] == "high"
    assert template["volumes"][0] in spec["volumes"]
    assert {"name": "data", "mountPath": "/data", "readOnly": False} in engine_of(rendered)["volumeMounts"]
    assert environment(engine_of(rendered))["HOME"]["value"] == "/data"


def test_spread_is_a_preference_by_default_and_can_be_turned_off():
    (constraint,) = pod({})["spec"]["topologySpreadConstraints"]
    assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"
    selected = constraint["labelSelector"]["matchLabels"].items()
    assert selected <= pod({})["metadata"]["labels"].items()
    assert "topologySpreadConstraints" not in pod({"podTemplate": {"topologySpreadConstraints": []}})["spec"]


def test_a_group_has_one_leader_that_serves():
    deployment = parse({"parallelism": {"tensor": 4, "pipeline": 2}})
    group = render_group(deployment, "0123456789", 0, "engine:1", "9.9")
    assert group["metadata"]["name"] not in (deployment.name, f"{deployment.name}-models")
    assert group["spec"]["replicas"] == 1
    template = group["spec"]["leaderWorkerTemplate"]
    assert template["size"] == 2
    assert template["restartPolicy"] == "RecreateGroupOnPodRestart"
    assert group["spec"]["startupPolicy"] == "LeaderCreated"
    leader, worker = template["leaderTemplate"], template["workerTemplate"]
    assert leader["metadata"]["labels"][names.LABEL_ROLE] == "engine"
    assert worker["metadata"]["labels"][names.LABEL_ROLE] == "worker"
    (first,), (other,) = leader["spec"]["containers"], worker["spec"]["containers"]
    assert "readinessProbe" in first
    assert not {"readinessProbe", "livenessProbe", "startupProbe", "lifecycle"} & set(other)
    for container in (first, other):
        assert environment(container)["MASTER_ADDR"]["value"] == "$(LWS_LEADER_ADDRESS)"
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///models/a%20b.gguf", "/models/a b.gguf"),
        ("pvc://claim", "/source/claim"),
        ("pvc://claim/a/b", "/source/claim/a/b"),
        ("s3://b/x/y.gguf", f"/models/{cache_path('s3://b/x/y.gguf')}"),
        ("hf://a/b", f"/models/{cache_path('hf://a/b', 'main')}"),
    ],
)
def test_paths_of_models(uri, path):
    assert model_path(uri) == path


def test_each_uri_and_revision_has_its_own_folder():
    sources = [
        ("hf://a/b", None),
        ("hf://a/b", "v1"),
        ("hf://a-b", None),
        ("s3://a/b", None),
        ("oci://a/b", None),
    ]
    paths = {cache_path(*source) for source in sources}
    assert len(paths) == len(sources)
    assert all("/" not in path and path[0].isalnum() for path in paths)
