"""Every tensor of a checkpoint comes out under its Hugging Face name with the value transformers reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from shoal_engine.checkpoint import Checkpoint, open_checkpoint
from shoal_engine.errors import ModelLoadError
from shoal_engine.gguf_checkpoint import GgufCheckpoint
from shoal_engine.quantization.gguf import dequantize
from tests.builders import save_tiny
from tests.engine.gguf_files import BPE_METADATA, model_metadata, model_tensors, write_gguf, write_model


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def assert_holds(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    names = set(checkpoint.names())
    assert names <= set(expected)
    assert {name for name in expected if name not in names} <= {"lm_head.weight"}  # where it is tied
    for name in names:
        assert torch.equal(checkpoint.tensor(name).float(), expected[name].float()), name


@pytest.mark.parametrize("shard_bytes", ["5GB", "50KB"], ids=["one file", "sharded"])
@pytest.mark.parametrize("name", ["llama-tied", "qwen2", "qwen3"])
def test_a_folder_holds_what_was_saved(tmp_path: Path, name: str, shard_bytes: str) -> None:
    model = save_tiny(name, tmp_path, shard_bytes)
    checkpoint = open_checkpoint(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_bytes == "50KB")
    assert_holds(checkpoint, model.state_dict())
    assert checkpoint.config.num_layers == model.config.num_hidden_layers


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_gguf_file_holds_what_transformers_reads(tmp_path: Path, arch: str, tied: bool) -> None:
    path = write_model(tmp_path / "m.gguf", arch, tied)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    )
    assert_holds(open_checkpoint(path), model.state_dict())


def quantise(values: Any, kind: str) -> tuple[Any, gguf.GGMLQuantizationType]:
    number = gguf.GGMLQuantizationType[kind]
    return gguf.quants.quantize(values, number), number


@pytest.fixture
def quantised(tmp_path: Path) -> Path:
    """The small llama with queries in Q8_0, keys in Q4_0 and output projections in bfloat16."""
    tensors: dict[str, Any] = dict(model_tensors("llama"))
    for block in ("blk.0", "blk.1"):
        for name, kind in (("attn_q", "Q8_0"), ("attn_k", "Q4_0"), ("attn_output", "BF16")):
            tensors[f"{block}.{name}.weight"] = quantise(tensors[f"{block}.{name}.weight"], kind)
    return write_gguf(tmp_path / "m.gguf", model_metadata("llama") | BPE_METADATA, tensors)


def test_a_quantised_gguf_file_holds_what_transformers_reads(quantised: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        quantised.parent, gguf_file=quantised.name, dtype=torch.float32
    )
    assert_holds(open_checkpoint(quantised), model.state_dict())


def test_raw_blocks_decode_to_the_tensor(quantised: Path) -> None:
    """Also where rows have been put back in order: blocks never span rows."""
    checkpoint = GgufCheckpoint(quantised)
    kinds = set()
    for name in checkpoint.names():
        block_type, rows, shape = checkpoint.raw(name)
        kinds.add(block_type.name)
        assert rows.dtype == torch.uint8
        assert rows.shape[0] == shape[0]
        assert torch.equal(dequantize(rows.reshape(-1), block_type).view(shape), checkpoint.tensor(name))
    assert kinds == {"F32", "Q8_0", "Q4_0", "BF16"}


def test_a_tensor_comes_as_stored_or_in_the_type_asked_for(quantised: Path) -> None:
    checkpoint = open_checkpoint(quantised)
    attention = "model.layers.0.self_attn"
    assert checkpoint.tensor(f"{attention}.q_proj.weight").dtype == torch.float32
    assert checkpoint.tensor(f"{attention}.o_proj.weight").dtype == torch.bfloat16
    half = checkpoint.tensor(f"{attention}.q_proj.weight", torch.float16)
    assert torch.equal(half, checkpoint.tensor(f"{attention}.q_proj.weight").half())


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_stored_bytes_add_up_to_the_total(tmp_path: Path, quantised: Path, kind: str) -> None:
    if kind == "folder":
        save_tiny("qwen2", tmp_path, "50KB")
    checkpoint = open_checkpoint(tmp_path if kind == "folder" else quantised)
    assert sum(map(checkpoint.stored_bytes, checkpoint.names())) == checkpoint.total_bytes
    size = sum(
        path.stat().st_size for path in tmp_path.glob("*.safetensors" if kind == "folder" else "*.gguf")
    )
    assert 0.8 * size < checkpoint.total_bytes < size
    for use in (checkpoint.tensor, checkpoint.stored_bytes):
        with pytest.raises(ModelLoadError, match=r"no tensor 'model\.nothing'"):
            use("model.nothing")


def folder_files(folder: Path) -> list[Path]:
    save_tiny("qwen2", folder, "50KB")
    return sorted(folder.glob("*.safetensors"))


def test_a_missing_file_of_a_sharded_folder_is_named(tmp_path: Path) -> None:
    files = folder_files(tmp_path)
    files[1].unlink()
    with pytest.raises(ModelLoadError, match=files[1].name):
        open_checkpoint(tmp_path)


def test_a_sharded_folder_without_its_index_is_refused(tmp_path: Path) -> None:
    folder_files(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelLoadError, match=r"no model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_file_cut_short_is_named(tmp_path: Path, length: int) -> None:
    cut = folder_files(tmp_path)[0]
    cut.write_bytes(cut.read_bytes()[:length])
    with pytest.raises(ModelLoadError, match=f"{cut.name} is broken or cut short"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "model.bin", 3])
def test_an_index_leads_nowhere_else(tmp_path: Path, shard: object) -> None:
    folder_files(tmp_path)
    change_index(tmp_path, "model.norm.weight", shard)
    with pytest.raises(ModelLoadError, match=r"names of \.safetensors files in the same folder"):
        open_checkpoint(tmp_path)


def test_an_index_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    files = folder_files(tmp_path)
    change_index(tmp_path, "model.extra.weight", files[0].name)
    with pytest.raises(ModelLoadError, match=r"lacks tensor 'model\.extra\.weight'"):
        open_checkpoint(tmp_path)


def change_index(folder: Path, name: str, shard: object) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][name] = shard
    path.write_text(json.dumps(index))


def test_pickled_weights_are_refused_and_never_opened(tmp_path: Path) -> None:
    (file,) = one_file(tmp_path)
    file.unlink()
    (tmp_path / "pytorch_model.bin").mkdir()  # opening it would be another error
    with pytest.raises(ModelLoadError, match="Convert them to safetensors"):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (file,) = one_file(tmp_path)
    file.unlink()
    with pytest.raises(ModelLoadError, match="has no weights"):
        open_checkpoint(tmp_path)


def test_weights_of_a_type_we_do_not_compute_with_are_refused(tmp_path: Path) -> None:
    (file,) = one_file(tmp_path)
    save_file({"model.norm.weight": torch.zeros(4, dtype=torch.float8_e4m3fn)}, file)
    with pytest.raises(ModelLoadError, match="F8_E4M3"):
        open_checkpoint(tmp_path)


def one_file(folder: Path) -> list[Path]:
    save_tiny("qwen2", folder)
    return list(folder.glob("*.safetensors"))


def test_a_file_that_is_neither_folder_nor_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ModelLoadError, match=r"model\.onnx is no \.gguf file"):
        open_checkpoint(tmp_path / "model.onnx")


REFUSED_TENSORS = {
    "an unsupported block type": (
        {"blk.0.ffn_up.weight": (np.zeros((48, 66), np.uint8), gguf.GGMLQuantizationType.IQ2_XXS)},
        "1 tensors have the block type IQ2_XXS",
    ),
    "a quantised vector": (
        {"output_norm.weight": (np.zeros(34, np.uint8), gguf.GGMLQuantizationType.Q8_0)},
        r"vector 'model\.norm\.weight' is quantised",
    ),
    "a tensor of another model": ({"blk.0.ffn_up_exps.weight": np.zeros((2, 2), np.float32)}, "ffn_up_exps"),
}


@pytest.mark.parametrize(("changes", "reason"), REFUSED_TENSORS.values(), ids=list(REFUSED_TENSORS))
def test_a_gguf_file_we_cannot_serve_whole_is_refused(tmp_path: Path, changes: Any, reason: str) -> None:
    tensors: dict[str, Any] = dict(model_tensors("llama")) | changes
    path = write_gguf(tmp_path / "m.gguf", model_metadata("llama") | BPE_METADATA, tensors)
    with pytest.raises(ModelLoadError, match=reason) as refusal:
        open_checkpoint(path)
    assert str(path) in str(refusal.value)


def test_queries_that_are_no_whole_heads_are_refused(tmp_path: Path) -> None:
    tensors = dict(model_tensors("llama")) | {"blk.0.attn_q.weight": np.zeros((24, 32), np.float32)}
    path = write_gguf(tmp_path / "m.gguf", model_metadata("llama") | BPE_METADATA, tensors)
    with pytest.raises(ModelLoadError, match="has 24 rows, not 4 heads of 8"):
        open_checkpoint(path).tensor("model.layers.0.self_attn.q_proj.weight")
