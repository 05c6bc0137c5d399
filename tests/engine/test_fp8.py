"""float8 checkpoints hold what their own tools read from them, and serve as the same model with dequantised weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal_engine import LLM, SamplingParams
from shoal_engine.checkpoint import open_checkpoint
from shoal_engine.errors import ModelLoadError
from shoal_engine.kernels.reference import ReferenceKernels
from shoal_engine.layers.products import Matrix
from shoal_engine.models.llama import Llama
from shoal_engine.quantization.fp8 import Fp8Weight, quantise_channels, read_scaled, stack
from shoal_engine.weights import RandomWeights, Weights
from tests.builders import greedy, prompts
from tests.engine.fp8_folders import (
    Tensors,
    change_config,
    change_tensors,
    save_compressed,
    save_finegrained,
    small_model,
)

NEW_TOKENS = 12
QUERY = "model.layers.0.self_attn.q_proj.weight"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("rounds_input", [True, False], ids=["W8A8", "W8A16"])
@pytest.mark.parametrize("preset", ["FP8", "FP8_DYNAMIC", "FP8_BLOCK"])
def test_a_folder_holds_what_compressed_tensors_reads(
    tmp_path: Path, preset: str, rounds_input: bool
) -> None:
    expected = save_compressed(tmp_path, preset, rounds_input)
    checkpoint = open_checkpoint(tmp_path)
    for name, tensor in expected.items():
        assert checkpoint.shape(name) == tensor.shape
        assert torch.equal(checkpoint.tensor(name), tensor), name
    stored = checkpoint.quantised(QUERY)
    assert isinstance(stored, Fp8Weight)
    assert stored.round_input == rounds_input
    assert stored.in_blocks == (preset == "FP8_BLOCK")
    assert checkpoint.quantised("lm_head.weight") is None


@pytest.mark.parametrize("in_blocks", [True, False], ids=["blocks", "tensor"])
def test_a_folder_holds_what_transformers_reads(tmp_path: Path, in_blocks: bool) -> None:
    save_finegrained(tmp_path, in_blocks)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    checkpoint = open_checkpoint(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(checkpoint.tensor(name, torch.bfloat16), tensor), name


def test_a_static_scale_of_the_input_and_the_older_name_of_the_weights_change_nothing(tmp_path: Path) -> None:
    save_finegrained(tmp_path / "a", in_blocks=False)
    save_finegrained(tmp_path / "b", False, "_scale", activation_scheme="static")
    change_tensors(tmp_path / "b", lambda one: one.update({QUERY[:-6] + "input_scale": torch.tensor(0.5)}))
    first, second = open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")
    assert torch.equal(first.tensor(QUERY), second.tensor(QUERY))


@pytest.mark.parametrize("intermediate", [384, 320], ids=["whole blocks", "broken blocks"])
@pytest.mark.parametrize("preset", ["FP8", "FP8_DYNAMIC", "FP8_BLOCK"])
def test_it_generates_as_the_dequantised_model(tmp_path: Path, preset: str, intermediate: int) -> None:
    expected = save_compressed(tmp_path, preset, intermediate=intermediate)
    oracle = small_model(intermediate)
    oracle.load_state_dict(expected)
    texts = prompts(3, oracle.config.vocab_size)
    llm = LLM(str(tmp_path), dtype="float32", num_threads=1, max_model_len=256)
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    results = llm.generate([{"prompt_token_ids": text} for text in texts], params)
    assert [result.outputs[0].token_ids for result in results] == [
        greedy(oracle, text, NEW_TOKENS) for text in texts
    ]


def taken(monkeypatch: pytest.MonkeyPatch) -> list[Matrix]:
    """The matrices that a model asks products for."""
    matrices: list[Matrix] = []

    def product(matrix: Matrix, *_: Any, **__: Any) -> Callable[[Tensor], Tensor]:
        matrices.append(matrix)
        return lambda x: x @ matrix.dense().T

    monkeypatch.setattr("shoal_engine.weights.matrix_product", product)
    return matrices


def test_parts_with_different_scales_are_stacked_by_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = save_compressed(tmp_path, "FP8")
    matrices = taken(monkeypatch)
    Weights(open_checkpoint(tmp_path), torch.float32, CPU).linear(
        [f"model.layers.1.self_attn.{part}_proj" for part in "qkv"], 256, [256, 128, 128]
    )
    (matrix,) = matrices
    assert isinstance(matrix.stored, Fp8Weight)
    assert len(set(matrix.stored.scale.tolist())) == 3
    want = torch.cat([expected[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"])
    assert torch.equal(matrix.stored.dequantise(torch.float32), want)
    assert torch.equal(matrix.dense(), want)


@pytest.mark.parametrize("source", ["checkpoint", "random"])
def test_weights_rounded_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Every matrix of the layers and no other; the same as rounding the whole stack by channel."""
    small_model().save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    matrices = taken(monkeypatch)
    for quantise in (None, "fp8"):
        weights = (
            Weights(checkpoint, torch.float32, CPU, quantise=quantise)
            if source == "checkpoint"
            else RandomWeights(torch.float32, CPU, seed=3, quantise=quantise)
        )
        Llama(checkpoint.config, weights, ReferenceKernels(), 64)
    plain, rounded = matrices[: len(matrices) // 2], matrices[len(matrices) // 2 :]
    assert [matrix.stored is not None for matrix in rounded] == [True] * 8 + [False]
    assert not any(matrix.stored for matrix in plain)
    if source == "random":  # drawn when asked for, so not twice the same
        return
    for before, after in zip(plain[:-1], rounded[:-1], strict=True):
        assert isinstance(after.stored, Fp8Weight)
        want = quantise_channels(before.dense())
        assert torch.equal(after.stored.values.float(), want.values.float())
        assert torch.equal(after.dense(), want.dequantise(torch.float32))


def test_a_float8_checkpoint_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = save_compressed(tmp_path, "FP8_BLOCK")
    matrices = taken(monkeypatch)
    Weights(open_checkpoint(tmp_path), torch.float32, CPU, quantise="fp8").linear(
        [QUERY.removesuffix(".weight")], 256, [256]
    )
    assert isinstance(matrices[0].stored, Fp8Weight)
    assert matrices[0].stored.in_blocks
    assert torch.equal(matrices[0].dense(), expected[QUERY])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**16))
def test_rounding_by_channel_keeps_every_number(n: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator) * torch.logspace(-6, 3, n)[:, None]
    weight[0] = 0.0
    rounded = quantise_channels(weight)
    error = (rounded.dequantise(torch.float64) - weight.double()).abs()
    # Half of the last of three bits, or of the distance 2^-9 of the smallest numbers.
    assert (error <= torch.maximum(weight.abs() / 16, rounded.scale[:, None] * 2**-10) * 1.0001).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**16))
def test_blocks_mean_what_their_definition_says(n: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, k, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-n // 128), -(-k // 128), generator=generator)
    scaled = read_scaled(values, scale)
    assert scaled is not None
    rows, columns = torch.arange(n) // 128, torch.arange(k) // 128
    want = values.double() * scale.double()[rows][:, columns]
    assert torch.equal(scaled.dequantise(torch.float64), want.float().double())


def test_what_cannot_be_stacked() -> None:
    channel = quantise_channels(torch.randn(128, 128))
    block = Fp8Weight(channel.values, torch.ones(1, 1))
    short = Fp8Weight(channel.values[:64], torch.ones(1, 1))
    assert stack([channel, block]) is None
    assert stack([short, block]) is None
    stacked = stack([block, short])
    assert stacked is not None
    assert stacked.values.shape == (192, 128)


def without_scale(tensors: Tensors) -> None:
    del tensors[f"{QUERY}_scale_inv"]


def wrong_scale(tensors: Tensors) -> None:
    tensors[f"{QUERY}_scale_inv"] = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(without_scale, r"has no scale"), (wrong_scale, r"shape \[3, 2\], which is no scale of .*\[256, 256\]")],
)
def test_a_scale_that_does_not_fit_is_refused(tmp_path: Path, change: Any, reason: str) -> None:
    save_finegrained(tmp_path, in_blocks=True)
    change_tensors(tmp_path, change)
    with pytest.raises(ModelLoadError, match=reason) as refusal:
        open_checkpoint(tmp_path).tensor(QUERY)
    assert str(tmp_path) in str(refusal.value)
    assert QUERY in str(refusal.value)


COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized"}
FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
TOKEN = FLOAT8 | {"strategy": "token"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"quant_method": "awq"}, "'quant_method' is 'awq'.*GGUF"),
    "other blocks": ({"quant_method": "fp8", "weight_block_size": [64, 128]}, "'weight_block_size'"),
    "another float8": ({"quant_method": "fp8", "fmt": "e5m2"}, "'fmt' is 'e5m2'"),
    "packed": (COMPRESSED | {"format": "pack-quantized"}, "'format' is 'pack-quantized'"),
    "sparse": (
        COMPRESSED | {"sparsity_config": {"format": "sparse-24-bitmask"}},
        "sparsity_config: field 'format'",
    ),
    "no groups": (COMPRESSED, "'config_groups'"),
    "integers": (
        COMPRESSED | {"config_groups": {"g": {"weights": FLOAT8 | {"type": "int"}}}},
        "config_groups: g: weights: field 'type' is 'int'",
    ),
    "four bits": (
        COMPRESSED | {"config_groups": {"g": {"weights": FLOAT8 | {"num_bits": 4}}}},
        "field 'num_bits' is 4",
    ),
    "groups of columns": (
        COMPRESSED | {"config_groups": {"g": {"weights": FLOAT8 | {"strategy": "group"}}}},
        "field 'strategy' is 'group'",
    ),
    "groups that disagree": (
        COMPRESSED
        | {"config_groups": {"g": {"weights": FLOAT8}, "h": {"weights": FLOAT8, "input_activations": TOKEN}}},
        "all have none",
    ),
}


@pytest.mark.parametrize(("quantization", "reason"), REFUSED.values(), ids=list(REFUSED))
def test_a_quantisation_we_cannot_read_is_refused(
    tmp_path: Path, quantization: dict[str, Any], reason: str
) -> None:
    small_model().save_pretrained(tmp_path)
    change_config(tmp_path, quantization_config=quantization)
    with pytest.raises(ModelLoadError, match=reason) as refusal:
        open_checkpoint(tmp_path)
    assert "config.json: quantization_config" in str(refusal.value)
