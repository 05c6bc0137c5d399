"""Which file or folder MODEL means."""

import pytest

from shoal_engine.errors import ModelLoadError
from shoal_engine.model_path import local_path


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_with_one_gguf_file_is_that_file(tmp_path, scheme):
    (tmp_path / "config.json").touch()
    assert local_path(f"{scheme}{tmp_path}") == tmp_path
    (tmp_path / "a.gguf").touch()
    assert local_path(f"{scheme}{tmp_path}") == tmp_path / "a.gguf"


def test_safetensors_beside_it_make_it_a_hugging_face_folder(tmp_path):
    for name in ("a.gguf", "model.safetensors"):
        (tmp_path / name).touch()
    assert local_path(str(tmp_path)) == tmp_path


def test_several_gguf_files_are_listed(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelLoadError, match=r"a\.gguf, b\.gguf"):
        local_path(str(tmp_path))
    assert local_path(str(tmp_path / "b.gguf")) == tmp_path / "b.gguf"


def test_what_is_not_here(tmp_path):
    for model in (str(tmp_path / "absent"), "hf://org/model"):
        with pytest.raises(ModelLoadError):
            local_path(model)
