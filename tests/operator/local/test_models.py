"""Model URIs on this machine's disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal_operator.local.errors import CannotRun
from shoal_operator.local.models import ModelPlaces, find_model, hf_cache_dir


@pytest.fixture
def places(tmp_path: Path) -> ModelPlaces:
    (tmp_path / "models/deep").mkdir(parents=True)
    (tmp_path / "models/deep/tiny model.gguf").touch()
    repo = tmp_path / "hub/models--org--name"
    (repo / "snapshots/abc123").mkdir(parents=True)
    (repo / "snapshots/abc123/tiny.gguf").touch()
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("abc123\n")
    return ModelPlaces(models_dir=tmp_path / "models", hf_cache=tmp_path / "hub")


def test_absolute_file_is_taken_as_it_is(places: ModelPlaces) -> None:
    folder = places.models_dir
    assert find_model(f"file://{folder}", None, places) == folder


@pytest.mark.parametrize(
    "uri", ["file:///models/deep/tiny%20model.gguf", "file:///models/deep/tiny model.gguf"]
)
def test_path_in_the_pods_mount_is_looked_for_in_models_dir(uri: str, places: ModelPlaces) -> None:
    assert find_model(uri, None, places) == places.models_dir / "deep/tiny model.gguf"


@pytest.mark.parametrize(
    ("uri", "revision", "found"),
    [
        ("hf://org/name", None, "abc123"),
        ("hf://org/name", "main", "abc123"),
        ("hf://org/name", "abc123", "abc123"),
        ("hf://org/name/tiny.gguf", None, "abc123/tiny.gguf"),
    ],
)
def test_hub_model_is_found_in_the_cache(
    uri: str, revision: str | None, found: str, places: ModelPlaces
) -> None:
    assert find_model(uri, revision, places) == places.hf_cache / "models--org--name/snapshots" / found


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("file:///models/absent", "or {models}/absent"),
        ("file:///absent/model", "there is no /absent/model; put"),
        ("file://models/tiny", "three slashes"),
        ("file:models/tiny", "three slashes"),
        ("hf://org/absent", "hf download org/absent --revision main"),
        ("hf://org", "hf://ORGANISATION/NAME"),
        ("s3://bucket/key", "file:///PATH"),
        ("pvc://claim/path", "file:///PATH"),
    ],
)
def test_absent_model_says_what_to_do(uri: str, says: str, places: ModelPlaces) -> None:
    with pytest.raises(CannotRun) as error:
        find_model(uri, None, places)
    assert says.format(models=places.models_dir) in str(error.value)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, Path("/a")),
        ({"HF_HOME": "/b"}, Path("/b/hub")),
        ({"XDG_CACHE_HOME": "/c"}, Path("/c/huggingface/hub")),
        ({}, Path.home() / ".cache/huggingface/hub"),
    ],
)
def test_cache_dir_follows_hugging_faces_variables(environ: dict[str, str], expected: Path) -> None:
    assert hf_cache_dir(environ) == expected
