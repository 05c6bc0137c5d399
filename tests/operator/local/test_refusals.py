"""What `shoal up` says when it starts nothing: manifests, models and ports that cannot be used."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal_operator.local.plan import Programs
from shoal_operator.local.ports import free_ports
from shoal_operator.local.up import main

# Would be noticed: a test that gets as far as starting one of these fails.
PROGRAMS = Programs(engine=("/no/such/engine",), router=("/no/such/router",))


def manifest(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.shoal.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": "fake"},
        "spec": {"model": {"uri": "file:///models/tiny"}, "resources": {"acceleratorCount": 0}, **spec},
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a model tiny in store/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store/tiny").mkdir(parents=True)
    return tmp_path


def up(*files: str, port: int | None = None) -> int:
    return main(["-f", *files, "--models-dir", "store", "--port", str(port or free_ports(1)[0])], PROGRAMS)


def test_a_taken_port_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "m.yaml").write_text(yaml.safe_dump(manifest()))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert up("m.yaml", port=port) == 1
    said = capsys.readouterr().err
    assert f"port {port} on 127.0.0.1 cannot be used (Address already in use): stop what listens" in said


def test_every_problem_of_every_manifest_is_shown_with_its_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.yaml").write_text(yaml.safe_dump(manifest(replicas=-1), sort_keys=False))
    (folder / "b.yaml").write_text(yaml.safe_dump(manifest(engine={"blokSize": 16}), sort_keys=False))
    assert up("a.yaml", "b.yaml") == 1
    said = capsys.readouterr().err
    assert re.search(r"^a\.yaml:10: spec\.replicas: must be at least 0", said, re.M)
    assert re.search(r"^b\.yaml:11: spec\.engine\.blokSize: .*blockSize", said, re.M)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kind: [", "m.yaml: "),
        ("", "there is no LLMDeployment in m.yaml"),
        ("kind: Service", "there is no LLMDeployment in m.yaml"),
        (
            yaml.safe_dump(manifest(model={"uri": "file:///models/absent"})),
            "/store/absent; put the model there",
        ),
        (yaml.safe_dump(manifest(model={"uri": "s3://bucket/x"})), "s3://bucket/x: `shoal up` serves"),
        (yaml.safe_dump(manifest(engine={"extraArgs": ["--port=1"]})), "--port is no extra argument"),
    ],
)
def test_what_cannot_run_says_why(
    text: str, says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "m.yaml").write_text(text)
    assert up("m.yaml") == 1
    assert says in capsys.readouterr().err


def test_an_absent_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert up("absent.yaml") == 1
    assert "absent.yaml" in capsys.readouterr().err


def test_suspended_or_empty_deployments_run_nothing_and_that_is_fine(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.yaml").write_text(yaml.safe_dump(manifest(suspend=True, replicas=3)))
    (folder / "b.yaml").write_text(yaml.safe_dump({**manifest(replicas=0), "metadata": {"name": "none"}}))
    assert up("a.yaml", "b.yaml") == 0
    said = capsys.readouterr().out
    assert "note: fake: it is suspended" in said
    assert "note: none: it has no replica" in said


def test_what_only_a_cluster_could_not_do_is_a_note(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "m.yaml").write_text(yaml.safe_dump(manifest()))
    assert up("m.yaml") == 1
    said = capsys.readouterr().out
    assert re.search(r"^note: m\.yaml:\d+: spec\.model\.uri: no volume .*\(ModelNotMounted\)$", said, re.M)
    assert "cannot be started" in said
