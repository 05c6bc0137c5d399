"""`shoal validate` says of a manifest what a cluster would, and names the field."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from shoal_api.validate import check, main

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))

DATA_VOLUME = {
    "volumes": [{"name": "d", "emptyDir": {}}],
    "volumeMounts": [{"name": "d", "mountPath": "/data"}],
}
INVALID = yaml.safe_load((Path(__file__).parent / "vectors" / "invalid_manifests.yaml").read_text())
NAMES = [case["name"] for case in INVALID]


def manifest(**spec: object) -> dict[str, object]:
    return {
        "apiVersion": "serving.shoal.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": "smollm2"},
        "spec": {"model": {"uri": "hf://org/name"}} | spec,
    }


@pytest.mark.parametrize("case", INVALID, ids=NAMES)
def test_an_invalid_manifest_is_refused_with_field_and_reason_and_nothing_else(case):
    problems = check(manifest(**case["spec"]) if "spec" in case else case["manifest"])
    assert [each.path for each in problems] == [case["field"]]
    assert case["why"] in str(problems[0])


@pytest.mark.parametrize("file", EXAMPLES, ids=[file.name for file in EXAMPLES])
def test_every_example_is_valid(file, capsys):
    assert main(["-f", str(file)]) == 0
    assert capsys.readouterr().out.startswith(f"{file}:")


@pytest.mark.parametrize(
    ("uri", "extra", "valid"),
    [
        ("file:///models/m", {"cache": {"type": "HostPath", "path": "/m"}}, True),
        ("file:///other/m", {"cache": {"type": "HostPath", "path": "/m"}}, False),
        ("file:///modelsx/m", {"cache": {"type": "HostPath", "path": "/m"}}, False),
        ("file:///data/m", {"podTemplate": DATA_VOLUME}, True),
        ("file:///data%2Fm", {"podTemplate": DATA_VOLUME}, True),
    ],
)
def test_a_file_is_served_from_a_volume_that_holds_it(uri, extra, valid):
    problems = check(manifest(model={"uri": uri}, **extra))
    assert valid == (not problems)


def test_a_document_that_holds_itself_is_refused_without_a_traceback(tmp_path, capsys):
    (tmp_path / "m.yaml").write_text(
        yaml.safe_dump(manifest(replicas=2)) + "  podTemplate:\n    affinity: &a {b: *a}\n"
    )
    assert main(["-f", str(tmp_path / "m.yaml")]) == 2
    assert "alias" in capsys.readouterr().err


def test_messages_point_at_the_line_of_the_field(tmp_path, capsys):
    file = tmp_path / "m.yaml"
    file.write_text(
        "# comment\napiVersion: serving.shoal.dev/v1alpha1\nkind: LLMDeployment\nmetadata:\n  name: a\nspec:\n"
        "  model:\n    uri: hf://a/b\n  adapters:\n  - name: x\n    uri: hf://a/b\n  - name: y\n    uri: nowhere\n"
        "  rollout:\n    maxSurge: 0\n"
    )
    assert main(["-f", str(file)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1] for line in lines] == ["13", "15"]
    assert "spec.adapters[1].uri" in lines[0]


def test_other_kinds_in_the_file_are_left_alone(tmp_path, capsys):
    file = tmp_path / "m.yaml"
    ours = yaml.safe_dump(manifest(replicas=2))
    file.write_text(f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: chat}}\n---\n---\n{ours}")
    assert main(["-f", str(file)]) == 0
    assert "Namespace: not looked at" in capsys.readouterr().out


def test_a_multi_node_replica_is_valid_with_a_note(tmp_path, capsys):
    file = tmp_path / "m.yaml"
    file.write_text(yaml.safe_dump(manifest(parallelism={"tensor": 8, "pipeline": 2})))
    assert main(["-f", str(file)]) == 0
    assert "LeaderWorkerSet" in capsys.readouterr().out


def test_one_invalid_document_among_many_fails_the_command(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(manifest(replicas=2)))
    (tmp_path / "b.yml").write_text(yaml.safe_dump(manifest(replicas=-2)))
    assert main(["-f", str(tmp_path)]) == 1
    assert main(["-f", str(tmp_path / "a.yaml")]) == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [", "line 1"),
        ("spec: {replicas: 1, replicas: 2}", "stands twice"),
        ("\x00", "special characters"),
    ],
)
def test_a_file_that_is_no_yaml_ends_with_2_and_says_where(text, why, tmp_path, capsys):
    file = tmp_path / "m.yaml"
    file.write_text(text)
    assert main(["-f", str(file)]) == 2
    assert "m.yaml" in (error := capsys.readouterr().err)
    assert why in error


def test_a_missing_file_and_an_empty_directory_end_with_2(tmp_path, capsys):
    assert main(["-f", str(tmp_path / "absent.yaml")]) == 2
    assert main(["-f", str(tmp_path)]) == 2
    assert "absent.yaml" in capsys.readouterr().err


def test_files_without_an_llmdeployment_are_not_taken_for_valid(tmp_path, capsys):
    (tmp_path / "m.yaml").write_text("kind: Namespace\napiVersion: v1\n")
    assert main(["-f", str(tmp_path / "m.yaml")]) == 1
    assert "no LLMDeployment" in capsys.readouterr().err


def test_dates_stay_text_as_on_the_way_to_the_api_server(tmp_path):
    text = yaml.safe_dump(manifest(replicas=2)).replace(
        "name: smollm2", "name: smollm2\n  labels: {day: 2026-01-02}"
    )
    (tmp_path / "m.yaml").write_text(text)
    assert main(["-f", str(tmp_path / "m.yaml")]) == 0
