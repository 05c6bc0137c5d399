"""The chart against what it must agree with: its schema, the options, the metrics. Needs no helm."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml
from prometheus_client import generate_latest

from shoal_api import crd, names
from shoal_api.flags import add_flags
from shoal_api.operator_options import OperatorOptions
from shoal_api.options import RouterOptions
from shoal_engine.server.exposition import Exposition
from shoal_engine.server.metrics import Metrics as EngineMetrics
from shoal_operator.probe_server import exposition
from shoal_router.failure_metrics import failure_lines
from shoal_router.gate import Gate
from shoal_router.interrupted import Interrupted
from shoal_router.key_metrics import key_lines
from shoal_router.metrics import Metrics as RouterMetrics
from shoal_router.metrics_text import render
from shoal_router.prefix_index import PrefixIndex
from shoal_router.quarantine import Quarantine
from shoal_router.usage import AnswerTokens, BytesPerToken

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "shoal"
VALUES = (CHART / "values.yaml").read_text()
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
QUERY_NAMES = re.compile(r"\b(?:vllm:|shoal:|shoal_router_|shoal_operator_)\w+")


def test_values_fit_their_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(yaml.safe_load(VALUES), SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("namespaces",), ["*", "models"]),
        (("namespaces",), ["Models"]),
        (("router", "replica"), 2),
        (("router", "replicas"), 0),
        (("engine", "image", "digest"), "latest"),
        (("router", "service", "type"), "clusterip"),
        (("router", "apiKeys", "secretKey"), "../keys"),
        (("router", "apiKeys", "keys"), []),
        (("tracing", "endpoint"), "collector:4317"),
        (("tracing", "sampleRatio"), 2),
    ],
)
def test_the_schema_refuses_mistakes(path: tuple[str, ...], value: Any) -> None:
    values = yaml.safe_load(VALUES)
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)


@pytest.mark.parametrize("namespaces", [[], ["*"], ["a", "b"]])
def test_the_schema_takes_lists_of_namespaces(namespaces: list[str]) -> None:
    jsonschema.validate(yaml.safe_load(VALUES) | {"namespaces": namespaces}, SCHEMA)


def test_every_value_has_a_sentence() -> None:
    lines = VALUES.splitlines()
    keys = [i for i, line in enumerate(lines) if re.match(r" *[A-Za-z]\w*:", line)]
    bare = [lines[i] for i in keys if not re.match(r" *# [A-Z].*\.$", lines[i - 1])]
    assert keys
    assert not bare


def test_every_value_is_used() -> None:
    templates = "".join(path.read_text() for path in (CHART / "templates").rglob("*.*"))
    unused = [key for key in _keys(yaml.safe_load(VALUES)) if not re.search(rf"\.{key}\b", templates)]
    # toYaml writes these as they are.
    assert not set(unused) - {"requests", "limits"}


def test_the_crd_is_fresh() -> None:
    fresh = crd.generated_files(ROOT)
    chart = [path for path in fresh if CHART in path.parents]
    assert chart
    for path in chart:
        assert path.read_text() == fresh[path]


@pytest.mark.parametrize(("program", "options"), [("operator", OperatorOptions), ("router", RouterOptions)])
def test_arguments_are_flags(program: str, options: Any) -> None:
    text = (CHART / "templates" / program / "deployment.yaml").read_text()
    parser = argparse.ArgumentParser()
    add_flags(parser, options)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    used = set(re.findall(r"^ *- (--[a-z-]+)=", text, re.MULTILINE))
    assert used
    assert used <= flags


def test_routers_may_reach_both_ports_of_an_engine_and_nobody_else_its_state() -> None:
    policy = (CHART / "templates" / "engines" / "networkpolicy.yaml").read_text()
    rules = [rule for rule in policy.split("    - ports:")[1:] if "port:" in rule]
    roles = {int(re.findall(r"port: (\d+)", rule)[0]): rule.split("{{- if")[0] for rule in rules}
    assert roles.keys() == {names.PORT_ENGINE_HTTP, names.PORT_ENGINE_GRPC}
    assert all(names.ROLE_ROUTER in rule for rule in roles.values())
    assert "metricsFrom" not in roles[names.PORT_ENGINE_GRPC]


def test_keys_are_mounted_as_a_directory_so_that_a_changed_secret_is_seen() -> None:
    text = (CHART / "templates" / "router" / "deployment.yaml").read_text()
    (folder,) = re.findall(r"--api-keys-file=(\S+)/\{\{", text)
    assert f"mountPath: {folder}\n" in text
    assert "subPath" not in text
    assert text.count(".Values.router.apiKeys.existingSecret") == 3, "argument, mount and volume go together"


def test_ports_are_the_shared_ones() -> None:
    def ports(program: str) -> set[int]:
        text = (CHART / "templates" / program / "deployment.yaml").read_text()
        return {int(port) for port in re.findall(r"containerPort: (\d+)", text)}

    assert ports("router") == {names.PORT_ROUTER_HTTP, names.PORT_ROUTER_GRPC}
    assert ports("operator") == {names.PORT_OPERATOR_PROBES}


@pytest.mark.parametrize("file", ["templates/monitoring/prometheusrule.yaml", "files/dashboard.json"])
def test_queries_name_metrics_that_exist(file: str) -> None:
    used = set(QUERY_NAMES.findall((CHART / file).read_text()))
    assert used
    assert not used - _exported()


def test_the_dashboard_has_no_two_panels_in_one_place() -> None:
    panels = json.loads((CHART / "files" / "dashboard.json").read_text())["panels"]
    assert len({(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}) == len(panels)
    assert len({p["id"] for p in panels}) == len(panels)


def _keys(values: dict[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and key not in ("requests", "limits", "labels"):
            yield from _keys(value)
        yield key


def _exported() -> set[str]:
    """Names of samples, as a scraper sees them."""
    engine, _ = Exposition(EngineMetrics(), "m").render("")
    index = PrefixIndex()
    gate = Gate(
        (),
        "keys.yaml",
        None,
        ratios=BytesPerToken(),
        answers=AnswerTokens(),
        now=lambda: 0.0,
        chance=lambda: 0.0,
    )
    proxy = SimpleNamespace(
        metrics=RouterMetrics(), quarantine=Quarantine(), interrupted=Interrupted(lambda: 0.0), kept_bytes=0
    )
    more = [*key_lines(gate), *failure_lines(proxy)]
    router = render(RouterMetrics(), endpoints=[], index=index, connections=0, active=0, held={}, more=more)
    operator = generate_latest(exposition(SimpleNamespace(mirrors=[], holds_lease=True)))
    text = (engine + router + operator).decode()
    samples = set(re.findall(r"^([a-z][\w:]*)[{ ]", text, re.MULTILINE))
    return samples | set(re.findall(r"^# TYPE (\S+) (?:counter|gauge)", text, re.MULTILINE))
