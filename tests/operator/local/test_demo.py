"""`shoal demo`: what it judges, how it finds the model, and that it fails with a reason."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from shoal_operator.local.demo import MODEL_FILE, main, place_model
from shoal_operator.local.demo_chat import Answer, find_fault

GOOD = Answer("Sunday.", "http://127.0.0.1:1", prompt_tokens=220, cached_tokens=208, seconds=0.5)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (replace(GOOD, cached_tokens=0), GOOD, None),
        (GOOD, replace(GOOD, cached_tokens=0), "took no token of the second prompt from its cache"),
        (GOOD, replace(GOOD, replica="http://127.0.0.1:2"), "it should be one and the same"),
        (replace(GOOD, replica=""), replace(GOOD, replica=""), "it should be one and the same"),
        (GOOD, replace(GOOD, text=" \n"), "an answer is empty"),
    ],
)
def test_only_one_replica_that_answers_from_its_cache_is_a_success(
    first: Answer, second: Answer, says: str | None
) -> None:
    fault = find_fault(first, second)
    assert fault is None if says is None else says in str(fault)


def test_the_packaged_model_is_linked_and_a_dead_link_replaced(tmp_path: Path) -> None:
    path = place_model(tmp_path / "models")
    assert path == tmp_path / "models" / MODEL_FILE
    assert path.read_bytes()[:4] == b"GGUF"
    path.unlink()
    path.symlink_to(tmp_path / "gone")
    assert place_model(tmp_path / "models").read_bytes()[:4] == b"GGUF"


def test_a_model_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_text("mine")
    assert place_model(tmp_path).read_text() == "mine"


def test_a_file_system_without_links_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    path = place_model(tmp_path)
    assert not path.is_symlink()
    assert path.read_bytes()[:4] == b"GGUF"
    assert os.listdir(tmp_path) == [MODEL_FILE]


@pytest.mark.parametrize(
    ("manifest", "up", "says"),
    [
        ("absent.yaml", "", "there is no absent.yaml: run the demo in a clone"),
        ("m.yaml", "raise SystemExit(3)", "shoal up ended with exit code 3 before it was ready"),
        ("m.yaml", "import time; time.sleep(60)", "shoal up was not ready within 1 s"),
    ],
)
def test_a_demo_that_does_not_get_ready_fails_with_the_reason(
    manifest: str,
    up: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.yaml").touch()
    assert main(["-f", manifest, "--timeout", "1"], up=(sys.executable, "-c", up)) == 1
    assert says in capsys.readouterr().err
