"""The revision hash: what must roll the pods changes it, what must not leaves it alone."""

from __future__ import annotations

import re
from typing import Any

import pytest

from shoal_api.names import ANNOTATION_RESTART
from shoal_api.spec import LLMDeployment
from shoal_operator.revision import revision_of

SPEC: dict[str, Any] = {
    "model": {"uri": "hf://Qwen/Qwen3-8B"},
    "engine": {"env": [{"name": "A", "value": "1"}]},
}


def deployment(change: dict[str, Any] | None = None, **metadata: Any) -> LLMDeployment:
    spec = {**SPEC}
    for block, value in (change or {}).items():
        spec[block] = {**spec.get(block, {}), **value} if isinstance(value, dict) else value
    return LLMDeployment.parse({"metadata": {"name": "chat", **metadata}, "spec": spec})


COUNTS = [
    {"model": {"uri": "hf://Qwen/Qwen3-4B"}},
    {"model": {"revision": "v2"}},
    {"model": {"name": "qwen"}},
    {"model": {"tokenSecretRef": {"name": "hugging-face"}}},
    {"engine": {"image": "example/engine:2"}},
    {"engine": {"maxModelLen": 4096}},
    {"engine": {"extraArgs": ["--x"]}},
    {"engine": {"env": [{"name": "A", "value": "2"}]}},
    {"engine": {"envFrom": [{"secretRef": {"name": "s"}}]}},
    {"engine": {"enablePrefixCaching": False}},
    {"parallelism": {"tensor": 2}},
    {"parallelism": {"pipeline": 2}},
    {"resources": {"requests": {"cpu": "1"}}},
    {"resources": {"limits": {"memory": "8Gi"}}},
    {"resources": {"acceleratorCount": 0}},
    {"resources": {"acceleratorResource": "amd.com/gpu"}},
    {"cache": {"type": "HostPath", "path": "/x"}},
    {"cache": {"size": "10Gi"}},
    {"adapters": [{"name": "sql", "uri": "hf://a/b"}]},
    {"podTemplate": {"nodeSelector": {"gpu": "h100"}}},
    {"podTemplate": {"metadata": {"annotations": {"a": "b"}}}},
    {"drain": {"timeoutSeconds": 10}},
    {"drain": {"preStopDelaySeconds": 0}},
]
DOES_NOT_COUNT = [
    {"replicas": 7},
    {"autoscaling": {"maxReplicas": 3}},
    {"rollout": {"type": "Recreate", "maxSurge": 3, "paused": True}},
    {"revisionHistoryLimit": 1},
    {"routing": {"strategy": "LeastLoad"}},
    {"disruptionBudget": {"disabled": True}},
    {"suspend": True},
    {"cache": {"prefetch": True}},
    {"cache": {"type": "EmptyDir"}},  # the default, written out
    {"engine": {"dtype": "auto"}},
]


@pytest.mark.parametrize("change", COUNTS, ids=str)
def test_what_pods_are_made_from_counts(change):
    assert revision_of(deployment(change)) != revision_of(deployment())


def test_each_change_gives_its_own_hash():
    assert len({revision_of(deployment(change)) for change in COUNTS}) == len(COUNTS)


@pytest.mark.parametrize("change", DOES_NOT_COUNT, ids=str)
def test_what_changes_no_pod_does_not_count(change):
    assert revision_of(deployment(change)) == revision_of(deployment())


def test_metadata_does_not_count_but_a_restart_does():
    plain = revision_of(deployment())
    assert revision_of(deployment(uid="u", generation=9, labels={"a": "b"}, annotations={"a": "b"})) == plain
    first, second = (
        revision_of(deployment(annotations={ANNOTATION_RESTART: time}))
        for time in ("2026-01-01", "2026-01-02")
    )
    assert len({plain, first, second}) == 3


def test_it_is_ten_hex_characters():
    assert re.fullmatch("[0-9a-f]{10}", revision_of(deployment()))


def test_it_is_the_same_for_every_version_of_the_operator():
    """Computed once by hand-written JSON: another result would restart every engine at an upgrade."""
    import hashlib

    text = (
        '{"cache":{},"engine":{"env":[{"name":"A","value":"1"}]},'
        '"model":{"uri":"hf://Qwen/Qwen3-8B"},"restart":""}'
    )
    assert revision_of(deployment()) == hashlib.sha256(text.encode()).hexdigest()[:10]
