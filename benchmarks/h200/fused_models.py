"""Models with random weights, batches and whole decode steps for fused_decode.py. Measures nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from kernel_cases import DEVICE, build, uniform
from torch import Tensor

from shoal_engine.config import ModelConfig
from shoal_engine.fused_decode import FusedDecode
from shoal_engine.kernels.cuda import CudaKernels
from shoal_engine.kernels.interface import AttentionBatch
from shoal_engine.kernels.reference import ReferenceKernels
from shoal_engine.kernels.triton_sampling import RowParameters, SamplingSpace, sample
from shoal_engine.layers.gpu_products import Bf16Product, Fp8Product
from shoal_engine.layers.linear import Linear
from shoal_engine.layers.mlp import GatedMLP
from shoal_engine.layers.products import DenseProduct
from shoal_engine.models.llama import Llama
from shoal_engine.weights import Quantise, RandomWeights

_QWEN3_06B = ModelConfig(
    architecture="Qwen3ForCausalLM", vocab_size=151936, hidden_size=1024, num_layers=28, num_heads=16,
    num_kv_heads=8, head_dim=128, intermediate_size=3072, max_position_embeddings=40960, tie_embeddings=True,
    qk_norm=True,
)  # fmt: skip
_LLAMA_8B = ModelConfig(
    architecture="LlamaForCausalLM", vocab_size=128256, hidden_size=4096, num_layers=32, num_heads=32,
    num_kv_heads=8, head_dim=128, intermediate_size=14336, max_position_embeddings=131072,
)  # fmt: skip
CONFIGS = {"0.6b": _QWEN3_06B, "8b": _LLAMA_8B}
FLOAT8 = "-fp8"  # after a model's name: weights and cache in float8
MAX_POSITIONS = 4096
BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Case:
    """A model, its step for `rows` requests of one length, and the cache they stand in."""

    model: Llama
    token_ids: Tensor
    batch: AttentionBatch
    cache: Tensor


def random_model(name: str, few_tokens: bool = False) -> Llama:
    """few_tokens: one layer and a small vocabulary, for what does not depend on them."""
    torch.manual_seed(0)
    kernels, config = CudaKernels(), CONFIGS[name.removesuffix(FLOAT8)]
    if few_tokens:
        config = replace(config, vocab_size=1024, num_layers=1)
    quantise: Quantise | None = "fp8" if name.endswith(FLOAT8) else None
    weights = RandomWeights(torch.bfloat16, torch.device(DEVICE), quantise=quantise)
    return Llama(config, weights, kernels, MAX_POSITIONS)


def first_layers(model: Llama, count: int) -> Llama:
    """The same model cut short; shares its weights."""
    short = copy.copy(model)
    short.blocks = model.blocks[:count]
    short.config = replace(model.config, num_layers=min(count, model.config.num_layers))
    return short


def random_case(model: Llama, rows: int, context: int) -> Case:
    config = model.config
    batch, num_blocks = build(uniform(rows, context), BLOCK_TOKENS)
    shape = (config.num_layers, num_blocks, 2, config.num_kv_heads, BLOCK_TOKENS, config.head_dim)
    cache = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).normal_()
    weight = cast(Bf16Product | Fp8Product, model.blocks[0].mlp.down_proj.product).weight
    token_ids = torch.randint(0, config.vocab_size, (rows,), device=DEVICE)
    return Case(model, token_ids, batch, cache.to(weight.dtype))


def in_float32(case: Case) -> Case:
    """The same case, its weights and cache widened, by the torch twins."""
    exact = _widened(case.model)
    return Case(exact, case.token_ids, case.batch, case.cache.float())


def _widened(model: Llama) -> Llama:
    """The model in float32; few layers, or memory ends."""
    shared = (model.embedding, model.norm.kernels, model.lm_head)
    twin, kernels = copy.deepcopy(model, {id(one): one for one in shared}), ReferenceKernels()
    twin.embedding = model.embedding.float()
    for norm in [twin.norm, *(norm for block in twin.blocks for norm in (block.input_norm, block.post_norm))]:
        norm.kernels, norm.weight = kernels, norm.weight.float()
    for block in twin.blocks:
        attention, mlp = block.attention, block.mlp
        attention.kernels = kernels
        heads = attention.heads
        if heads.q_gain is not None and heads.k_gain is not None:
            attention.heads = replace(heads, q_gain=heads.q_gain.float(), k_gain=heads.k_gain.float())
        attention.qkv_proj, attention.o_proj = _dense(attention.qkv_proj), _dense(attention.o_proj)
        block.mlp = GatedMLP(_dense(mlp.gate_up_proj), _dense(mlp.down_proj), kernels)
    return twin


def _dense(linear: Linear) -> Linear:
    """In float32."""
    product = cast(Bf16Product | Fp8Product, linear.product)
    weight = product.weight.float()
    return Linear(DenseProduct(weight if product.scale is None else weight * product.scale[:, None]))


def unfused(case: Case) -> Callable[[], Tensor]:
    """hidden [R, H]."""
    kernels = case.model.norm.kernels
    assert isinstance(kernels, CudaKernels)

    def step() -> Tensor:
        kernels.begin_step(case.batch)
        return case.model(case.token_ids, case.batch, case.cache)

    return step


def fused(case: Case, decode: FusedDecode) -> Callable[[], Tensor]:
    return lambda: decode(case.token_ids, case.batch, case.cache)


def with_sampling(case: Case, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The whole step: logits and a greedy token for each row."""
    rows, vocab = len(case.token_ids), case.model.config.vocab_size
    space = SamplingSpace(rows, vocab, torch.device(DEVICE))
    zeros = torch.zeros(rows, device=DEVICE)
    asked = RowParameters(
        zeros, zeros, torch.full((rows,), vocab, dtype=torch.int32, device=DEVICE),
        torch.full((rows,), float("inf"), dtype=torch.float64, device=DEVICE), zeros.long(), zeros.long(),
    )  # fmt: skip
    model = case.model

    def whole() -> Tensor:
        return sample(model.logits(step()), asked, space, truncated=False)[0]

    return whole
