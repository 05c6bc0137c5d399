"""What an LLMDeployment means once it has been read."""

from __future__ import annotations

import copy

import pytest

from shoal_api.fields import block_of
from shoal_api.lifecycle import MAX_REPLICAS
from shoal_api.names import MAX_NAME_CHARS, pod_name
from shoal_api.rules import broken_rules
from shoal_api.serving import serve_options
from shoal_api.spec import InvalidManifest, LLMDeployment
from shoal_api.suggestions import ELSEWHERE


def manifest(**spec):
    return {
        "apiVersion": "serving.shoal.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": "smollm2", "namespace": "chat"},
        "spec": {"model": {"uri": "hf://org/model"}, **spec},
    }


def deployment(**spec):
    return LLMDeployment.parse(manifest(**spec))


def test_a_model_is_all_that_a_manifest_has_to_say():
    minimal = deployment()
    assert (minimal.name, minimal.namespace, minimal.spec.replicas) == ("smollm2", "chat", 1)
    assert minimal.served_model == "smollm2"
    assert minimal.accelerators_per_pod == 1


def test_what_the_api_server_adds_is_read_and_the_rest_is_left_alone():
    stored = manifest()
    stored["metadata"] |= {"uid": "u", "generation": 3, "managedFields": [{"manager": "kubectl"}]}
    stored["status"] = {"replicas": 2, "conditions": []}
    parsed = LLMDeployment.parse(stored)
    assert (parsed.metadata.uid, parsed.metadata.generation, parsed.status["replicas"]) == ("u", 3, 2)


def test_parsing_changes_no_manifest():
    before = manifest(engine={"dtype": None}, autoscaling={"maxReplicas": 2})
    after = copy.deepcopy(before)
    LLMDeployment.parse(after)
    assert after == before


def test_a_null_is_a_field_left_out_as_for_the_api_server():
    nulls = deployment(
        engine={"dtype": None, "maxModelLen": None, "env": [{"name": "A", "value": "b", "valueFrom": None}]},
        replicas=None,
        autoscaling=None,
    )
    assert nulls == deployment(engine={"env": [{"name": "A", "value": "b"}]})


def test_an_unknown_field_is_refused_even_when_it_is_null():
    with pytest.raises(InvalidManifest, match=r"spec\.frobnicate: unknown field"):
        deployment(frobnicate=None)


def test_all_problems_are_told_at_once():
    with pytest.raises(InvalidManifest) as refusal:
        deployment(replicas=-1, engine={"dtype": "half"}, autoscaling={})
    assert [each.path for each in refusal.value.problems] == [
        "spec.engine.dtype",
        "spec.replicas",
        "spec.autoscaling.maxReplicas",
    ]


@pytest.mark.parametrize(
    ("spec", "desired"),
    [
        ({}, 1),
        ({"replicas": 0}, 0),
        ({"replicas": 3, "suspend": True}, 0),
        ({"replicas": 9, "autoscaling": {"maxReplicas": 4}}, 4),
        ({"replicas": 0, "autoscaling": {"minReplicas": 2, "maxReplicas": 4}}, 2),
        ({"replicas": 9, "autoscaling": {"enabled": False, "maxReplicas": 4}}, 9),
    ],
)
def test_desired_replicas_are_held_within_the_autoscalers_bounds(spec, desired):
    assert deployment(**spec).desired_replicas == desired


@pytest.mark.parametrize(
    ("tensor", "pipeline", "count", "accelerators", "pods"),
    [
        (1, 1, None, 1, 1),
        (8, 1, None, 8, 1),
        (8, 2, None, 8, 2),
        (4, 2, 8, 8, 1),
        (1, 1, 0, 0, 1),
        (2, 4, 2, 2, 4),
    ],
)
def test_accelerators_of_a_pod_follow_from_parallelism(tensor, pipeline, count, accelerators, pods):
    resources = {} if count is None else {"acceleratorCount": count}
    built = deployment(parallelism={"tensor": tensor, "pipeline": pipeline}, resources=resources)
    assert (built.accelerators_per_pod, built.pods_per_replica) == (accelerators, pods)


def test_an_engine_gets_its_options_from_every_block_of_the_manifest():
    built = deployment(
        model={"uri": "hf://org/model", "revision": "v1", "name": "chat"},
        engine={"maxModelLen": 4096, "blockSize": 32},
        parallelism={"tensor": 2},
        drain={"timeoutSeconds": 60},
        adapters=[{"name": "sql", "uri": "hf://org/sql"}],
    )
    options = serve_options(built, "/models/m", {"sql": "/models/sql"}, port=8001)
    assert (options.model, options.revision, options.served_model_name) == ("/models/m", "v1", "chat")
    assert (options.max_model_len, options.block_size, options.tensor_parallel_size) == (4096, 32, 2)
    assert (options.enable_lora, options.lora, options.drain_timeout_s) == (True, ("sql=/models/sql",), 60.0)
    assert (options.host, options.port, options.device) == ("0.0.0.0", 8001, "auto")


def test_without_an_accelerator_the_engine_is_told_to_use_the_cpu():
    assert serve_options(deployment(resources={"acceleratorCount": 0}), "/m").device == "cpu"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"parallelism": {"tensor": 2}}, "spec.parallelism"),
        ({"cache": {"type": "HostPath", "path": "/m"}}, "spec.cache.type"),
    ],
)
def test_what_a_rolling_update_cannot_mix_changes_only_with_recreate(change, field):
    before = deployment()
    assert [each.path for each in broken_rules(deployment(**change), before)] == [field]
    assert not broken_rules(deployment(**change, rollout={"type": "Recreate"}), before)
    assert not broken_rules(before, before)


def test_hints_for_misplaced_fields_point_at_fields_that_exist():
    for target in ELSEWHERE.values():
        model, (*parents, last) = LLMDeployment, target.split(".")
        for part in parents:
            (info,) = (info for info in model.model_fields.values() if info.alias == part)
            model = block_of(info)
        assert last in {info.alias for info in model.model_fields.values()}, target


def test_the_longest_name_of_a_pod_fits_into_a_label():
    name = "a" * MAX_NAME_CHARS
    LLMDeployment.parse(manifest() | {"metadata": {"name": name}})
    assert len(pod_name(name, "0123456789", MAX_REPLICAS - 1)) <= 63
