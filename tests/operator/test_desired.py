"""The objects beside the pods: they select the rendered pods, and a revision can be read back."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal_api.flags import parse_flags
from shoal_api.model_cache import model_path
from shoal_api.names import LABEL_DEPLOYMENT
from shoal_api.options import EngineOptions, ServeOptions
from shoal_api.spec import LLMDeployment
from shoal_operator.desired import claim, config_map, desired_objects, disruption_budget, service
from shoal_operator.pod import render
from shoal_operator.revision import revision_of

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.stem)
def example(request) -> LLMDeployment:
    return LLMDeployment.parse(yaml.safe_load(request.param.read_text()))


def parse(**spec: Any) -> LLMDeployment:
    spec = {"model": {"uri": "hf://a/b"}, **spec}
    return LLMDeployment.parse({"metadata": {"name": "chat", "uid": "u-1"}, "spec": spec})


def test_the_mounted_options_are_those_of_the_manifest(example, tmp_path):
    """Read as `shoal serve --config` reads them."""
    file = tmp_path / "options.yaml"
    file.write_text(config_map(example, "0123456789", "now")["data"]["options.yaml"])
    options = parse_flags(argparse.ArgumentParser(), ServeOptions, ["--config", str(file)])
    spec = example.spec
    assert options.model == model_path(spec.model.uri, spec.model.revision)
    assert options.served_model_name == example.served_model
    assert options.tensor_parallel_size == spec.parallelism.tensor
    assert options.drain_timeout_s == spec.drain.timeout_s
    assert (options.host, options.port, options.grpc_port) == ("0.0.0.0", 8000, 9000)
    assert [entry.partition("=")[0] for entry in options.lora] == [adapter.name for adapter in spec.adapters]
    computed = {"enable_lora", "device"}
    for field in set(EngineOptions.model_fields) - computed:
        assert getattr(options, field) == getattr(spec.engine, field), field


def test_a_revision_can_be_rendered_again(example):
    data = config_map(example, "0123456789", "now")["data"]
    again = LLMDeployment.parse(
        {"metadata": example.metadata.model_dump(by_alias=True), "spec": json.loads(data["spec.json"])}
    )
    assert again.spec == example.spec
    assert revision_of(again) == revision_of(example)
    assert config_map(again, "0123456789", "now")["data"] == data


def test_the_pod_mounts_its_revision():
    deployment = parse()
    pod = render(deployment, "0123456789", 0, "engine", "1")
    (volume,) = [volume for volume in pod["spec"]["volumes"] if "configMap" in volume]
    assert volume["configMap"]["name"] == config_map(deployment, "0123456789", "now")["metadata"]["name"]
    command = pod["spec"]["containers"][0]["command"]
    (mount,) = [m for m in pod["spec"]["containers"][0]["volumeMounts"] if m["name"] == volume["name"]]
    assert f"{mount['mountPath']}/options.yaml" == command[-1]


def test_service_and_budget_select_the_pods_of_this_deployment_alone():
    deployment = parse(disruptionBudget={"maxUnavailable": 2})
    labels = render(deployment, "0123456789", 0, "engine", "1")["metadata"]["labels"]
    headless = service(deployment)["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["selector"].items() <= labels.items()
    assert headless["selector"][LABEL_DEPLOYMENT] == "chat"
    budget = disruption_budget(deployment)
    assert budget is not None
    assert budget["spec"]["maxUnavailable"] == 2
    selector = budget["spec"]["selector"]
    assert selector["matchLabels"].items() <= labels.items()
    assert selector["matchLabels"][LABEL_DEPLOYMENT] == "chat"
    assert all(labels[entry["key"]] in entry["values"] for entry in selector["matchExpressions"])
    assert disruption_budget(parse(disruptionBudget={"disabled": True})) is None


MADE = {"type": "PersistentVolumeClaim", "size": "10Gi", "storageClassName": "fast"}
GIVEN = {"type": "PersistentVolumeClaim", "claimName": "mine"}


def test_a_claim_is_made_for_a_size_only():
    made = claim(parse(cache=MADE))
    assert made is not None
    assert made["metadata"]["name"] == "chat-models"
    assert made["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "10Gi"}},
        "storageClassName": "fast",
    }
    assert claim(parse(cache=GIVEN)) is None
    assert claim(parse(cache={"type": "EmptyDir", "size": "1Gi"})) is None


@pytest.mark.parametrize(("cache", "name"), [(MADE, "chat-models"), (GIVEN, "mine")])
def test_the_pod_mounts_the_claim(cache, name):
    volumes = render(parse(cache=cache), "0123456789", 0, "engine", "1")["spec"]["volumes"]
    claims = [v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v]
    assert claims == [name]


def test_everything_is_owned_and_labelled(example):
    for made in [*desired_objects(example), config_map(example, "0123456789", "now")]:
        metadata = made["metadata"]
        assert metadata["labels"][LABEL_DEPLOYMENT] == example.name
        assert metadata["namespace"] == example.namespace
        (owner,) = metadata["ownerReferences"]
        assert owner["name"] == example.name
        assert owner["controller"]
        assert json.loads(json.dumps(made)) == made
