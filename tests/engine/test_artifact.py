"""An artifact holds a model and the kernels of its start; it can be moved, and only read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import triton
from triton import knobs
from triton.runtime.cache import FileCacheManager, get_cache_manager

from shoal_api.options import ModelOptions
from shoal_engine import build_command, kernel_cache
from shoal_engine.artifact import MANIFEST, kernels_of, use_kernels, write_artifact
from shoal_engine.kernel_cache import KernelBuild, mark_of
from shoal_engine.kernels.gpu import H200

KEY, OTHER = "ab" * 32, "cd" * 32  # as Triton hashes them
FILES = {"a.cubin": b"\x7fELF", "a.json": b"{}", "a.ttir": b"for who reads it"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Triton's, with one kernel."""
    monkeypatch.setattr(knobs.cache, "manager_class", FileCacheManager)
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path / "cache"))
    manager = get_cache_manager(KEY)
    group = {name: manager.put(data, name) for name, data in FILES.items()}
    manager.put_group("a.json", group)
    return tmp_path / "cache"


def test_a_moved_artifact_serves_its_kernels_and_keeps_new_ones_elsewhere(
    model: Path, cache: Path, tmp_path: Path
) -> None:
    write_artifact(model, tmp_path / "built", cache, {})
    shutil.rmtree(cache)
    moved = tmp_path / "moved"
    (tmp_path / "built").rename(moved)
    kernels = kernels_of(moved)
    assert kernels is not None
    use_kernels(kernels)
    found = get_cache_manager(KEY).get_group("a.json")
    assert {name: Path(path).read_bytes() for name, path in found.items()} == {
        name: data for name, data in FILES.items() if name != "a.ttir"
    }
    other = get_cache_manager(OTHER)
    assert other.get_group("b.json") is None
    assert other.get_file("b.so") is None
    assert Path(other.put(b"new", "b.so")).is_relative_to(cache)
    assert other.get_file("b.so") is not None
    assert len([each for each in kernels.iterdir() if each.is_dir()]) == 1


@pytest.mark.parametrize(("release", "serves"), [(triton.__version__, True), ("2.0.0", False)])
def test_compiled_c_serves_by_name_if_this_triton_built_it(
    release: str, serves: bool, model: Path, cache: Path, tmp_path: Path
) -> None:
    """Its key names the folder of the driver, which is another one where the artifact is used."""
    get_cache_manager(OTHER).put(b"what loads kernels", "cuda_utils.so")
    for key in ("ef" * 32, "01" * 32):  # one for each signature
        get_cache_manager(key).put(b"a launcher", "__triton_launcher.so")
    write_artifact(model, tmp_path / "built", cache, {"triton": release})
    shutil.rmtree(cache)
    use_kernels(tmp_path / "built" / "kernels")
    elsewhere = get_cache_manager("23" * 32)
    assert (elsewhere.get_file("cuda_utils.so") is not None) == serves
    assert elsewhere.get_file("__triton_launcher.so") is None


def test_a_folder_without_a_manifest_is_a_model_like_any_other(
    model: Path, cache: Path, tmp_path: Path
) -> None:
    write_artifact(model, tmp_path / "built", cache, {"shoal": "1"})
    assert (tmp_path / "built" / "model.safetensors").read_bytes() == b"weights"
    (tmp_path / "built" / MANIFEST).unlink()
    assert kernels_of(tmp_path / "built") is None


def test_a_start_from_an_artifact_that_has_everything_compiles_nothing(
    model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks: list[bool] = []
    waits: list[int] = []
    monkeypatch.setattr(kernel_cache, "wait_for_gpu", lambda: waits.append(len(forks)))
    monkeypatch.setattr(kernel_cache, "fork", lambda work, alone: forks.append(alone) or 1)
    mark_of(ModelOptions(model=str(model)), H200).touch()
    write_artifact(model, tmp_path / "built", cache, {})
    shutil.rmtree(cache)
    options = ModelOptions(model=str(tmp_path / "built"))
    assert KernelBuild.begin(options, H200) is None
    assert not forks
    assert KernelBuild.begin(options.model_copy(update={"max_num_seqs": 3}), H200) is not None
    assert forks == [True]
    assert waits == [0]  # a thread in the middle of something would be gone in the fork, its locks not


def test_a_build_says_what_it_cannot_do(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert build_command.main([str(model), "-o", str(tmp_path / "new")]) == 3
    assert "--gpu a100" in capsys.readouterr().err
    assert build_command.main([str(model), "-o", str(model), "--gpu", "h200"]) == 3
    assert "exists already" in capsys.readouterr().err
    assert build_command.main([str(tmp_path / "nothing"), "-o", str(tmp_path / "new"), "--gpu", "h200"]) == 3
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_build_takes_the_kernels_that_were_compiled(
    model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(options: ModelOptions, kind: object, mark: Path) -> int:
        manager = get_cache_manager(KEY)
        manager.put_group("a.json", {name: manager.put(data, name) for name, data in FILES.items()})
        mark.touch()
        return 0

    monkeypatch.setattr(kernel_cache, "build", build)
    built = tmp_path / "built"
    assert build_command.main([str(model), "-o", str(built), "--gpu", "h200", "--max-num-seqs", "9"]) == 0
    assert json.loads((built / MANIFEST).read_text())["options"] == {"max_num_seqs": 9}
    marks = [file.name for file in (built / "kernels").iterdir() if file.is_file()]
    assert marks == [mark_of(ModelOptions(model=str(model), max_num_seqs=9), H200).name]
    assert len(list((built / "kernels").rglob("a.cubin"))) == 1
