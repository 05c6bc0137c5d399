"""The generated CRD says what the models say, in the form that the API server takes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from shoal_api import crd as crd_module
from shoal_api.crd import CRD_FILE, crd, generated_files, main
from shoal_api.fields import block_of, entries_of
from shoal_api.rules import rules_of
from shoal_api.spec import LLMDeployment, LLMDeploymentSpec
from shoal_api.status import Condition, ConditionType, LLMDeploymentStatus, Reason
from shoal_api.structural import structural_schema
from tests.api.strategies import any_of

ROOT = Path(__file__).parents[2]
VERSION = crd()["spec"]["versions"][0]
RESOURCE = VERSION["schema"]["openAPIV3Schema"]
FORBIDDEN = {"$ref", "title", "oneOf", "allOf", "not", "const", "exclusiveMinimum", "nullable", "uniqueItems"}


def nodes(schema, path="spec"):
    """Every schema below one, with its path."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


def closed(schema):
    """The schema with unknown fields refused, as strict validation does."""
    inner = {key: closed(value) if isinstance(value, dict) else value for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        inner["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        inner["additionalProperties"] = False
    return inner


def blocks_in(model):
    """The models of all blocks in one, each once."""
    for info in model.model_fields.values():
        if block := block_of(info) or entries_of(info):
            yield from [block, *blocks_in(block)]


BLOCKS = list(dict.fromkeys(blocks_in(LLMDeploymentSpec)))
SPEC = [*nodes(RESOURCE["properties"]["spec"])]
STATUS = [*nodes(RESOURCE["properties"]["status"], "status")]


@pytest.mark.parametrize(("path", "node"), SPEC + STATUS, ids=[path for path, _ in SPEC + STATUS])
def test_every_field_is_structural_bounded_and_explained(path, node):
    assert not FORBIDDEN & node.keys()
    assert "type" in node or node.get("x-kubernetes-int-or-string")
    if node.get("type") == "string" and "enum" not in node:
        assert "maxLength" in node
    if node.get("type") == "array":
        assert "maxItems" in node
    if "additionalProperties" in node:
        assert "maxProperties" in node
    if not path.endswith("[]"):
        assert re.search(r"[.]$", node["description"]), node["description"]


@pytest.mark.parametrize("block", BLOCKS, ids=[block.__name__ for block in BLOCKS])
def test_whatever_a_model_takes_its_schema_takes(block):
    schema = closed(structural_schema(block))

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
    @given(any_of(block))
    def passes(value):
        jsonschema.validate(value.model_dump(by_alias=True, exclude_none=True, mode="json"), schema)

    passes()


def test_defaults_of_the_schema_are_those_of_the_models():
    def filled(schema, value):
        for name, inner in schema.get("properties", {}).items():
            if name not in value and "default" in inner:
                value[name] = inner["default"] if not isinstance(inner["default"], dict) else {}
            if name in value and isinstance(value[name], dict):
                filled(inner, value[name])
        return value

    manifest = {
        "metadata": {"name": "a"},
        "spec": filled(RESOURCE["properties"]["spec"], {"model": {"uri": "hf://a/b"}}),
    }
    bare = {"metadata": {"name": "a"}, "spec": {"model": {"uri": "hf://a/b"}}}
    assert LLMDeployment.parse(manifest) == LLMDeployment.parse(bare)
    assert manifest["spec"]["replicas"] == 1, "GET /scale fails without spec.replicas"


def test_every_rule_stands_beside_the_fields_it_judges():
    written = [rule for _, node in SPEC for rule in node.get("x-kubernetes-validations", [])]
    declared = [rule for block in [LLMDeploymentSpec, *BLOCKS] for rule in rules_of(block)]
    assert sorted(rule["rule"] for rule in written) == sorted(rule.holds for rule in declared)
    for _, node in SPEC:
        for rule in node.get("x-kubernetes-validations", []):
            target = node
            for part in rule["fieldPath"].strip(".").split("."):
                target = target["properties"][part]
    at_root = {rule["rule"] for rule in RESOURCE["x-kubernetes-validations"]}
    assert at_root == {rule.holds for rule in rules_of(LLMDeployment)}


def test_the_scale_subresource_and_the_columns_point_at_fields_that_exist():
    scale = VERSION["subresources"]["scale"]
    paths = [*scale.values(), *(column["jsonPath"] for column in VERSION["additionalPrinterColumns"])]
    for path in paths:
        node = {
            "properties": RESOURCE["properties"] | {"metadata": {"properties": {"creationTimestamp": {}}}}
        }
        for part in re.sub(r"\[.*\]", "", path).strip(".").split("."):
            node = node["properties"][part] if "properties" in node else node["items"]["properties"][part]
    shown = [column["name"] for column in VERSION["additionalPrinterColumns"] if "priority" not in column]
    assert shown == ["Model", "Desired", "Ready", "Up-to-date", "Status", "Age"]


def test_the_crd_has_the_names_of_the_contract():
    spec = crd()["spec"]
    assert (spec["group"], spec["scope"], VERSION["name"]) == ("serving.shoal.dev", "Namespaced", "v1alpha1")
    assert (spec["names"]["kind"], spec["names"]["shortNames"]) == ("LLMDeployment", ["llmd"])
    assert crd()["metadata"]["name"] == "llmdeployments.serving.shoal.dev"


def test_a_status_reads_back_what_it_writes_and_forgives_a_newer_operator():
    status = LLMDeploymentStatus(
        replicas=2,
        conditions=(
            Condition(
                type="Available", status="True", reason="EnoughReplicas", observed_generation=1,
                last_transition_time="2026-01-02T03:04:05Z",
            ),
        ),
    )  # fmt: skip
    written = status.model_dump(by_alias=True, exclude_none=True, mode="json")
    jsonschema.validate(written, closed(RESOURCE["properties"]["status"]))
    assert LLMDeploymentStatus.model_validate(written | {"fromTheFuture": 1}) == status


@pytest.mark.parametrize("words", [ConditionType, Reason])
def test_condition_types_and_reasons_are_single_words_told_once(words):
    choices = words.__args__
    assert len(choices) == len(set(choices))
    assert all(re.fullmatch(r"[A-Z][A-Za-z]+", choice) for choice in choices)


def checkout(tmp_path, monkeypatch):
    """An empty checkout that `main` takes for its own."""
    package = tmp_path / "crds" / "shoal_api"
    package.mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(crd_module, "__file__", str(package / "crd.py"))
    return tmp_path


def test_check_names_stale_files_and_writing_mends_them(tmp_path, monkeypatch, capsys):
    root = checkout(tmp_path, monkeypatch)
    assert main(["--check"]) == 1
    assert "python -m shoal_api.crd" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0
    file = root / "crds" / CRD_FILE
    file.write_text(file.read_text() + "\n")
    assert main(["--check"]) == 1
    assert f"{CRD_FILE} is stale" in capsys.readouterr().err


def test_outside_of_a_checkout_nothing_is_written(tmp_path, monkeypatch, capsys):
    (checkout(tmp_path, monkeypatch) / "pyproject.toml").unlink()
    assert main([]) == 2
    assert "no checkout" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.yaml"))


def test_the_chart_gets_the_same_crd_behind_its_values(tmp_path):
    assert len(generated_files(tmp_path)) == 2
    (tmp_path / "charts" / "shoal").mkdir(parents=True)
    (template,) = (text for path, text in generated_files(tmp_path).items() if "charts" in path.parts)
    rendered = "\n".join(line for line in template.splitlines() if "{{" not in line)
    expected = crd()
    expected["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}
    assert yaml.safe_load(rendered) == expected
    assert template.count("{{- if ") == template.count("{{- end }}") == 2
