"""A fused decode step in Triton's interpreter equals the model's own step with the torch twins, state and all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from shoal_engine import fused_choice
from shoal_engine.config import ModelConfig
from shoal_engine.fused_choice import RowsTiles, RowTiles, most_rows, supports
from shoal_engine.fused_decode import FusedDecode
from shoal_engine.kernels import gluon_decode, gluon_narrow
from shoal_engine.kernels.fused_tiles import MAX_ROWS, AttentionTile, GemvTile, NarrowTile, ProductTile
from shoal_engine.kernels.interface import HeadLayout
from shoal_engine.kernels.reference import ReferenceKernels
from shoal_engine.layers.gpu_products import fp8_product
from shoal_engine.layers.linear import Linear
from shoal_engine.layers.products import DenseProduct
from shoal_engine.models.llama import Llama
from shoal_engine.quantization.fp8 import quantise_channels
from shoal_engine.weights import RandomWeights
from tests.engine.kernels.compiled_elsewhere import compiled
from tests.engine.kernels.paged_batches import attention_batch, filled_cache, poison_outputs, without_padding

SMALL = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=50,
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=96,
    max_position_embeddings=512,
)
ODD = replace(SMALL, hidden_size=72, num_heads=3, num_kv_heads=1, head_dim=24, intermediate_size=100)
# Two layers show how one hands on to the next; what a layer may have beside shows in one.
CONFIGS = {
    "llama": SMALL,
    "qwen3": replace(SMALL, qk_norm=True, tie_embeddings=True, head_dim=32, num_layers=1),
    "qwen2": replace(SMALL, qkv_bias=True, num_layers=1),
    "odd": replace(ODD, qk_norm=True, qkv_bias=True, num_layers=1),
    "sliding": replace(SMALL, sliding_window=20, sliding_layers=(1,)),
}
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2}  # the interpreter truncates to bfloat16
BLOCK_TOKENS = 16
GEMV = GemvTile(row_steps=4, segments=1, warps=4)
PRODUCT = ProductTile(block_n=32, block_k=64, parts=1)


# The down product of Qwen3-0.6B, compiled for Hopper in a process without the interpreter.
NARROW = """
import json
import torch
import triton
from shoal_engine.kernels.fused_tiles import NarrowTile
from shoal_engine.kernels.gpu import H200
from shoal_engine.kernels.triton_builds import foreseen, target_of
from shoal_engine.kernels.triton_fused_operands import FusedWeight, PartialSums, Stream
from shoal_engine.kernels.triton_fused_product import multiply_rows

def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")

def walk():
    sums = PartialSums(empty(8, dtype=torch.float32), empty(8, dtype=torch.int32))
    wide, half, float8 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
    for rows, dtype, stored in ((8, wide, wide), (8, float8, wide), (8, float8, half), (3, wide, wide), (16, wide, wide)):
        scale = empty(1024, dtype=torch.float32) if dtype == torch.float8_e4m3fn else None
        stream = Stream(empty(rows, 1024), empty(rows, 1024), empty(rows * 64, dtype=torch.float32))
        weight = FusedWeight(empty(1024, 3072, dtype=dtype), scale)
        x, gain, tile = empty(rows, 3072, dtype=stored), empty(1024), NarrowTile(16, 8, 6)
        multiply_rows(x, weight, stream.scaled, tile, sums, True, adds_to=stream, gain=gain)

told = []
for build in foreseen(H200, walk):
    source = build.kernel.ASTSource(build.kernel, build.signature, build.constants, build.attributes)
    compiled = triton.compile(source, target=target_of(H200), options=build.options)
    before, _, after = compiled.asm["ptx"].partition("griddepcontrol.wait")
    loads, late = (
        [line for line in part.splitlines() if "ld.global" in line and "evict_first" in line] for part in (before, after)
    )
    constants = {build.kernel.arg_names[at[0]]: value for at, value in build.constants.items()}
    told.append({
        "loads": sum(".v4." in line for line in loads), "late": len(late),
        "bytes": 4 // constants["packed"], "blocks": constants["block_m"] // 8,
        "products": compiled.asm["ptx"].count("mma.sync"), "registers": build.options["maxnreg"],
        "in_float16": compiled.asm["ptx"].count("f32.f16.f16.f32"), "widened": compiled.asm["ptx"].count("e4m3x2"),
        "converted": compiled.asm["ptx"].count("satfinite.f16x2"),
    })
print(json.dumps(told))
"""


# The four products of Qwen3-0.6B for a card of Ada's with its 99 KiB of shared memory, where no narrow kernel runs.
ADA = """
import json
import torch
import triton
from shoal_engine.kernels.fused_tiles import product_tile
from shoal_engine.kernels.gpu import GpuKind
from shoal_engine.kernels.triton_builds import foreseen, target_of
from shoal_engine.kernels.triton_fused_operands import FusedWeight, PartialSums
from shoal_engine.kernels.triton_fused_product import multiply_rows

def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")

kind = GpuKind((8, 9), 58)

def walk():
    sums = PartialSums(empty(2**23, dtype=torch.float32), empty(8192, dtype=torch.int32))
    for n, k in ((4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)):
        for rows in (8, 16, 32):
            weight = FusedWeight(empty(n, k))
            multiply_rows(empty(rows, k), weight, empty(rows, n), product_tile(n, k, rows, False), sums, False)

told = []
for build in foreseen(kind, walk):
    source = build.kernel.ASTSource(build.kernel, build.signature, build.constants, build.attributes)
    told.append(triton.compile(source, target=target_of(kind), options=build.options).metadata.shared)
print(json.dumps(told))
"""


class PlainWeights(RandomWeights):
    """Gains that differ from one another, and matrices as a GPU keeps them."""

    def take(self, name: str, *shape: int) -> Tensor:
        values = torch.randn(shape, generator=self._generator)
        if name.endswith("norm.weight"):
            return (1.0 + 0.3 * values).to(self._dtype)
        return (values * 0.2).to(self._dtype)

    def linear(
        self, names: Sequence[str], in_features: int, out_sizes: Sequence[int], *, bias: bool = False
    ) -> Linear:
        weight = torch.cat(
            [self.take(f"{n}.weight", o, in_features) for n, o in zip(names, out_sizes, strict=True)]
        )
        return Linear(DenseProduct(weight, self.take("bias", len(weight)) if bias else None))


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    poison_outputs(monkeypatch)


def build(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Llama:
    return Llama(config, PlainWeights(dtype, torch.device("cpu")), ReferenceKernels(), 512)


def fuse(
    model: Llama, rows: int, product: ProductTile = PRODUCT, gemv: GemvTile = GEMV, workers: int = 3
) -> FusedDecode:
    """With small tiles, so that few programs run: the interpreter takes milliseconds for each."""
    fused = FusedDecode(model, rows)
    attention = AttentionTile(16, 4, workers * model.config.num_kv_heads)
    fused.use(rows, RowTiles(*[gemv] * 4) if rows == 1 else RowsTiles(*[product] * 4), attention)
    return fused


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def check(
    model: Llama, fused: FusedDecode, contexts: Sequence[int], cache_dtype: torch.dtype | None = None
) -> None:
    """Every step's hidden states and what it left in the cache. Padding rows stand last and change nothing."""
    config, dtype = model.config, model.embedding.dtype
    layout = HeadLayout(config.num_heads, config.num_kv_heads, config.head_dim)
    tolerance = TOLERANCE[dtype] if cache_dtype is None else 0.1  # the interpreter truncates to float8 too
    batch, num_blocks = attention_batch([1] * len(contexts), contexts, BLOCK_TOKENS)
    cache = torch.stack([filled_cache(batch, num_blocks, layout, dtype) for _ in model.blocks])
    new = batch.slots[batch.slots >= 0]
    cache[:, new // BLOCK_TOKENS, :, :, new % BLOCK_TOKENS] = float("nan")  # not written yet
    cache = cache.to(cache_dtype or dtype)
    twin_cache, real = cache.clone(), without_padding(batch)
    token_ids = torch.randint(0, config.vocab_size, (len(contexts),))
    rows = real.num_requests
    real = replace(real, slots=real.slots[:rows], positions=real.positions[:rows])
    want = model(token_ids[:rows], real, twin_cache)
    got = fused(token_ids, batch, cache)
    assert got.dtype == dtype
    assert relative_error(got[:rows], want) <= tolerance
    cache, twin_cache = cache.float(), twin_cache.float()
    assert torch.equal(cache.isnan(), twin_cache.isnan()), "only the new tokens are written"
    assert relative_error(cache.nan_to_num(0.0), twin_cache.nan_to_num(0.0)) <= tolerance


@pytest.mark.parametrize("contexts", [[34], [33, 1, 0]], ids=str)
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_step_equals_the_models(name: str, contexts: list[int]) -> None:
    model = build(CONFIGS[name])
    check(model, fuse(model, len(contexts)), contexts)


@pytest.mark.parametrize("contexts", [[18], [33, 2]], ids=str)
def test_bfloat16(contexts: list[int]) -> None:
    model = build(CONFIGS["qwen3"], torch.bfloat16)
    check(model, fuse(model, len(contexts)), contexts)


def test_a_float8_cache() -> None:
    model = build(CONFIGS["qwen3"])
    check(model, fuse(model, 2), [40, 18], torch.float8_e4m3fn)


def test_a_second_step_finds_the_counters_at_zero() -> None:
    model = build(replace(SMALL, num_layers=1))
    fused = fuse(model, 2, ProductTile(block_n=32, block_k=32, parts=2), workers=4)
    for _ in range(2):
        check(model, fused, [50, 30])


def test_products_fit_the_shared_memory_of_a_card_without_the_narrow_kernel() -> None:
    shared = compiled(ADA)
    assert len(shared) == 12
    assert max(shared) <= 101376


def test_narrow_products_load_weights_into_registers_before_they_wait() -> None:
    told = compiled(NARROW)
    assert len(told) == 4  # one for 3 and 8 rows
    assert sum(build["converted"] > 0 for build in told) == 1
    for build in told:
        assert build["loads"] == 16 * 3072 * build["bytes"] // (
            256 * 16
        )  # 16 rows, 16 bytes of 256 threads at once
        assert build["late"] == 0
        assert build["products"] == build["blocks"] * 3072 // (8 * 16)
        assert build["registers"] <= 248
        # Two numbers of a thread at once, of which a product takes eight.
        float8 = build["bytes"] == 1
        assert build["in_float16"] == (build["products"] if float8 else 0)
        assert build["widened"] == 4 * build["in_float16"]


def test_large_float8_weights_are_fused_while_all_tiles_are_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = RandomWeights(torch.bfloat16, torch.device("meta"), quantise="fp8")
    large = replace(SMALL, num_layers=1, hidden_size=4096, num_heads=32, num_kv_heads=8, head_dim=128)
    measured, other, small = (
        Llama(replace(large, intermediate_size=size), weights, ReferenceKernels(), 512)
        for size in (14336, 12288, 1000)
    )
    assert [most_rows(model) for model in (measured, other, small)] == [0, 0, 32]
    monkeypatch.setattr(gluon_narrow, "runs_on", lambda device, dtype: True)
    assert [most_rows(model) for model in (measured, other, small)] == [32, 16, 32]
    stored = [FusedDecode(model, 16)._space.activated.dtype for model in (measured, other, small)]
    assert stored == [torch.float16, torch.float16, torch.bfloat16]
    # Where attention is the kernel that writes no float16, products read what it writes.
    assert FusedDecode(measured, 16)._space.attended.dtype == torch.bfloat16
    monkeypatch.setattr(gluon_decode, "serves", lambda *_: True)
    assert FusedDecode(measured, 16)._space.attended.dtype == torch.float16


def test_layers_of_two_kinds_are_not_fused() -> None:
    model = build(replace(SMALL, num_layers=2), torch.bfloat16)
    assert supports(model, 1)
    model.blocks[1].mlp.down_proj = Linear(fp8_product(quantise_channels(torch.randn(64, 96))))
    assert not supports(model, 1)


def test_one_row_is_multiplied_in_narrow_tiles_where_all_four_products_have_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide = replace(SMALL, num_layers=1, hidden_size=512, head_dim=128, intermediate_size=512)
    models = [build(one, torch.bfloat16) for one in (wide, replace(wide, intermediate_size=500))]
    assert all(isinstance(FusedDecode(model, 1).products(1), RowTiles) for model in models)
    monkeypatch.setattr(gluon_narrow, "runs_on", lambda device, dtype: True)
    narrow, mixed = (FusedDecode(model, 1).products(1) for model in models)
    assert isinstance(mixed, RowTiles)
    assert isinstance(narrow, RowsTiles)
    assert isinstance(narrow.down, NarrowTile)
    monkeypatch.setattr(fused_choice, "_MAX_NARROW_ROW", 2**18)  # fewer than its largest weight has
    assert isinstance(FusedDecode(models[0], 1).products(1), RowTiles)
    assert isinstance(FusedDecode(models[0], 2).products(2), RowsTiles)


def test_a_model_that_cannot_be_fused_is_refused() -> None:
    biased = build(replace(SMALL, num_layers=1, mlp_bias=True))
    assert not supports(biased, 1)
    with pytest.raises(ValueError, match="no fused decode step"):
        FusedDecode(biased)
    model = build(replace(SMALL, num_layers=1))
    assert not supports(model, MAX_ROWS + 1)
    batch, _ = attention_batch([1, 1], [3, 4], BLOCK_TOKENS)
    with pytest.raises(ValueError, match="1 to 1 decodes"):
        FusedDecode(model, 1)(torch.tensor([1, 2]), batch, torch.empty(0))
