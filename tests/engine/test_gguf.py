"""GGUF files: what is in them comes out bit for bit, and what is not one is refused."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal_engine.checkpoint import open_checkpoint
from shoal_engine.config import read_config
from shoal_engine.errors import ModelLoadError
from shoal_engine.gguf import open_gguf
from shoal_engine.quantization.block_types import BLOCK_TYPES, BlockType
from shoal_engine.quantization.gguf import CHUNK_ELEMENTS, PLAIN_DTYPES, SUPPORTED, dequantize
from shoal_engine.tokenizer import load_tokenizer
from tests.engine.gguf_files import write_gguf, write_model

QUANTISED = [
    block_type for block_type in BLOCK_TYPES.values() if block_type.name in SUPPORTED[len(PLAIN_DTYPES) :]
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_table_of_block_types_is_that_of_the_gguf_package() -> None:
    theirs = {kind.value: (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    ours = {number: (each.name, each.elements, each.num_bytes) for number, each in BLOCK_TYPES.items()}
    assert ours == theirs


@pytest.mark.parametrize("block_type", QUANTISED, ids=lambda each: each.name)
@pytest.mark.parametrize(("rows", "blocks_per_row"), [(1, 1), (3, 5), (7, 1)])
def test_every_quantised_type_decodes_to_the_bit(
    block_type: BlockType, rows: int, blocks_per_row: int
) -> None:
    random = np.random.default_rng(rows)
    data = random.integers(0, 256, (rows, blocks_per_row * block_type.num_bytes), np.uint8)
    assert_same_bits(dequantize(torch.from_numpy(data).view(-1), block_type), decoded(data, block_type))


@pytest.mark.parametrize("block_type", QUANTISED, ids=lambda each: each.name)
def test_decoding_is_the_same_across_the_pieces_it_works_in(block_type: BlockType) -> None:
    blocks = CHUNK_ELEMENTS // block_type.elements + 3
    data = np.random.default_rng(0).integers(0, 256, (1, blocks * block_type.num_bytes), np.uint8)
    assert_same_bits(dequantize(torch.from_numpy(data).view(-1), block_type), decoded(data, block_type))


@pytest.mark.parametrize("block_type", QUANTISED, ids=lambda each: each.name)
def test_decoding_into_a_smaller_type_rounds_once(block_type: BlockType) -> None:
    data = torch.from_numpy(np.random.default_rng(1).integers(0, 200, 9 * block_type.num_bytes, np.uint8))
    rounded = dequantize(data, block_type).to(torch.bfloat16)
    assert torch.equal(dequantize(data, block_type, torch.bfloat16).nan_to_num(), rounded.nan_to_num())


@pytest.mark.parametrize("name", PLAIN_DTYPES)
def test_plain_types_are_views(name: str) -> None:
    values = torch.arange(12, dtype=PLAIN_DTYPES[name])
    block_type = next(each for each in BLOCK_TYPES.values() if each.name == name)
    data = values.view(torch.uint8)
    plain = dequantize(data, block_type)
    assert torch.equal(plain, values)
    assert plain.data_ptr() == data.data_ptr()
    assert torch.equal(dequantize(data, block_type, torch.float16), values.half())


def decoded(data: np.ndarray[Any, Any], block_type: BlockType) -> np.ndarray[Any, Any]:
    kind = gguf.GGMLQuantizationType[block_type.name]
    with np.errstate(invalid="ignore", over="ignore"):  # random scales are NaN and infinite now and then
        return gguf.quants.dequantize(data, kind).reshape(-1)  # type: ignore[no-any-return]


def assert_same_bits(ours: torch.Tensor, theirs: np.ndarray[Any, Any]) -> None:
    same = (ours.numpy().view(np.uint32) == theirs.view(np.uint32)) | (
        np.isnan(ours.numpy()) & np.isnan(theirs)
    )
    assert same.all()


def test_metadata_of_every_type_comes_back(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "all.gguf", "llama")
    scalars = {
        "UINT8": 200,
        "INT8": -100,
        "UINT16": 60_000,
        "INT16": -30_000,
        "UINT32": 4_000_000_000,
        "INT32": -2_000_000_000,
        "UINT64": 2**63 + 1,
        "INT64": -(2**62),
        "FLOAT32": 0.5,
        "FLOAT64": 1e-300,
        "BOOL": True,
        "STRING": "日本 ▁",
    }
    for name, value in scalars.items():
        writer.add_key_value(f"x.{name}", value, gguf.GGUFValueType[name])
    writer.add_array("x.texts", ["a", "", "日本"])
    writer.add_array("x.numbers", [1, 2, 3])
    writer.add_array("x.floats", [0.5, -1.0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    metadata = open_gguf(tmp_path / "all.gguf").metadata
    assert {name: metadata[f"x.{name}"] for name in scalars} == scalars
    assert metadata["x.texts"] == ["a", "", "日本"]
    assert metadata["x.numbers"].tolist() == [1, 2, 3]
    assert metadata["x.floats"].tolist() == [0.5, -1.0]


def test_tensors_have_the_shape_they_were_written_with(tmp_path: Path) -> None:
    written = {"a": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "b": np.arange(5, dtype=np.float16)}
    tensors = open_gguf(write_gguf(tmp_path / "m.gguf", {}, written)).tensors
    assert {name: tensor.shape for name, tensor in tensors.items()} == {"a": (2, 3, 4), "b": (5,)}
    assert tensors["a"].data.view(np.float32).tolist() == list(range(24))
    assert tensors["b"].data.view(np.float16).tolist() == list(range(5))


def test_a_model_file_reads_as_the_gguf_package_reads_it(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", "qwen2")
    theirs, ours = gguf.GGUFReader(path), open_gguf(path)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        stored = ours.tensors[tensor.name]
        assert stored.shape == tuple(reversed(tensor.shape.tolist()))
        assert stored.block_type.name == tensor.tensor_type.name
        assert np.array_equal(stored.data, tensor.data.view(np.uint8).reshape(-1))
    for key, value in ours.metadata.items():
        plain = value.tolist() if isinstance(value, np.ndarray) else value
        assert plain == theirs.fields[key].contents()


def test_the_files_of_a_split_model_are_one(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    for number in range(5):
        writer.add_tensor(f"t{number}", np.full(4, number, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = sorted(tmp_path.glob("*.gguf"))
    tensors = open_gguf(files[0]).tensors
    assert [tensors[f"t{number}"].data.view(np.float32)[0] for number in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ModelLoadError, match="give the first"):
        open_gguf(files[1])
    files[2].unlink()
    with pytest.raises(ModelLoadError, match=files[2].name):
        open_gguf(files[0])


HEAD = struct.Struct("<4sIQQ")


def head(
    magic: bytes = b"GGUF", version: int = 3, tensors: int = 0, pairs: int = 0, body: bytes = b""
) -> bytes:
    return HEAD.pack(magic, version, tensors, pairs) + body


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def entry(shape: tuple[int, ...], kind: int = 0, offset: int = 0, name: bytes = b"t") -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


BROKEN = {
    "empty": (b"", "is empty"),
    "no magic": (head(b"PK\x03\x04"), "does not start with the bytes GGUF"),
    "version 1": (head(version=1), "version is 1"),
    "version 9": (head(version=9), "version is 9"),
    "big endian": (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big endian"),
    "cut in the head": (head()[:10], "ends inside"),
    "2^60 tensors": (head(tensors=1 << 60), "claims 1152921504606846976 tensors"),
    "2^63 pairs": (head(pairs=1 << 63), "metadata pairs"),
    "a key of 2^40 bytes": (head(pairs=1, body=struct.pack("<Q", 1 << 40) + bytes(9)), "a metadata key"),
    "an unknown type": (head(pairs=1, body=text(b"k") + struct.pack("<I", 77)), "metadata type 77"),
    "2^50 numbers": (head(pairs=1, body=text(b"k") + struct.pack("<IIQ", 9, 5, 1 << 50)), "array elements"),
    "2^50 texts": (head(pairs=1, body=text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 50)), "texts"),
    "a text that overruns": (
        head(pairs=1, body=text(b"k") + struct.pack("<IIQQ", 9, 8, 1, 1 << 33)),
        "inside a text",
    ),
    "arrays of arrays": (head(pairs=1, body=text(b"k") + struct.pack("<IIQ", 9, 9, 1)), "elements of type 9"),
    "a key twice": (head(pairs=2, body=(text(b"k") + struct.pack("<IB", 0, 1)) * 2), "appears twice"),
    "alignment 3": (
        head(pairs=1, body=text(b"general.alignment") + struct.pack("<II", 4, 3)),
        "alignment is 3",
    ),
    "five dimensions": (head(tensors=1, body=entry((1, 1, 1, 1, 1)) + bytes(64)), "5 dimensions"),
    "no dimension": (head(tensors=1, body=entry(()) + bytes(64)), "0 dimensions"),
    "an empty tensor": (head(tensors=1, body=entry((0,)) + bytes(64)), "whole F32 blocks"),
    "half a block": (head(tensors=1, body=entry((16,), 2) + bytes(64)), "whole Q4_0 blocks"),
    "an unknown block type": (head(tensors=1, body=entry((1,), 99) + bytes(64)), "block type 99"),
    "sizes that overflow": (head(tensors=1, body=entry((1 << 63, 1 << 63)) + bytes(64)), "cut short"),
    "an offset outside": (head(tensors=1, body=entry((1,), 0, 1 << 62) + bytes(64)), "cut short"),
    "an odd offset": (head(tensors=1, body=entry((1,), 0, 5) + bytes(64)), "not aligned"),
    "a tensor twice": (head(tensors=2, body=entry((1,)) * 2 + bytes(64)), "appears twice"),
}


@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_file_is_refused_with_its_name_and_what_is_wrong(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=reason) as refusal:
        open_gguf(path)
    assert str(path) in str(refusal.value)
    assert "download it again" in str(refusal.value)


@pytest.mark.parametrize("opener", [open_gguf, read_config, open_checkpoint])
def test_what_is_no_file_is_refused(tmp_path: Path, opener: Callable[[Path], object]) -> None:
    with pytest.raises(ModelLoadError, match=r"missing\.gguf"):
        opener(tmp_path / "missing.gguf")


@cache
def model_bytes(folder: Path) -> bytes:
    return write_model(folder / "model.gguf").read_bytes()


def load_everything(path: Path) -> None:
    """All that the engine reads of a file; ModelLoadError is the one way in which it may fail."""
    with suppress(ModelLoadError):
        config = read_config(path)
        checkpoint = open_checkpoint(path)
        for name in checkpoint.names():
            checkpoint.tensor(name)
        load_tokenizer(path, config).encode("hello world 12")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PATCHES = st.lists(
    st.tuples(st.integers(0, 7000), st.sampled_from([0, 1, 2, 3, 7, 8, 9, 0x7F, 0x80, 0xFF])),
    min_size=1,
    max_size=6,
)


@FUZZ
@given(patches=PATCHES, cut=st.one_of(st.none(), st.none(), st.integers(0, 200_000)))
def test_no_damage_to_a_file_does_worse_than_a_refusal(
    folder: Path, patches: list[tuple[int, int]], cut: int | None
) -> None:
    content = bytearray(model_bytes(folder))
    for at, value in patches:  # within the head, where every byte means something
        content[at] = value
    damaged = folder / "damaged.gguf"
    damaged.write_bytes(content if cut is None else content[: cut % len(content)])
    load_everything(damaged)


@FUZZ
@given(at=st.integers(0, 7000), value=st.sampled_from([0, 1, 255, 1 << 31, 1 << 32, 1 << 61, (1 << 64) - 1]))
def test_a_lying_number_costs_no_memory(folder: Path, at: int, value: int) -> None:
    """Eight bytes of the head replaced by a count or length that the file cannot hold."""
    content = bytearray(model_bytes(folder))
    content[at : at + 8] = struct.pack("<Q", value)
    damaged = folder / "lying.gguf"
    damaged.write_bytes(content)
    tracemalloc.start()
    try:
        load_everything(damaged)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 << 20
