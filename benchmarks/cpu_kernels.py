"""Each CPU kernel beside what torch and oneDNN offer for the same work, in one run, with the shapes of SmolLM2-135M.

    python benchmarks/cpu_kernels.py [--threads 2] [--seconds 2] [--only attend]

Every case has as many copies of its weights and caches as the model has layers, so that they come from memory and not
from a processor's cache, as in a real step. Ours and the peer take turns layer by layer; of each layer the best round
counts, which a neighbour on the same cores disturbs least. Figures are microseconds per call.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from shoal_engine.host_runtime import prepare

prepare(os.environ)

# ruff: noqa: E402
import torch
from torch import Tensor
from torch.nn import functional

from shoal_engine.kernels import cpu_linear
from shoal_engine.kernels.cpu import CpuKernels
from shoal_engine.kernels.cpu_build import load_library
from shoal_engine.kernels.cpu_linear import WeightKind
from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadLayout, Kernels
from shoal_engine.kernels.reference import ReferenceKernels

LAYERS = 30
HIDDEN, INTERMEDIATE, VOCABULARY = 576, 1536, 49152
LAYOUT = HeadLayout(num_heads=9, num_kv_heads=3, head_dim=64)
SCALE = AttentionScale(64**-0.5)
BLOCK_TOKENS = 16
PRODUCTS = [(LAYOUT.qkv_size, HIDDEN), (HIDDEN, HIDDEN), (2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)]
BLOCK_BYTES = {WeightKind.Q4_0: 18, WeightKind.Q4_1: 20, WeightKind.Q8_0: 34}

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One call per layer of ours and of the peer; what the call must read at least, and what it computes."""

    name: str
    peer_name: str
    ours: list[Call]
    peer: list[Call]
    read_bytes: float
    operations: float


def best_us(calls: list[list[Call]], seconds: float) -> list[float]:
    """Mean over layers of each layer's best round, for every list of calls; the lists take turns for `seconds`."""
    best = [[float("inf")] * len(layers) for layers in calls]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or float("inf") in best[-1]:
        for layer in range(len(calls[0])):
            for which, layers in enumerate(calls):
                started = time.perf_counter()
                layers[layer]()
                best[which][layer] = min(best[which][layer], time.perf_counter() - started)
    return [sum(layers) / len(layers) * 1e6 for layers in best]


def report(case: Case, seconds: float) -> None:
    ours, peer = best_us([case.ours, case.peer], seconds)
    rates = f"{case.read_bytes / ours / 1e3:8.1f}{case.operations / ours / 1e3:9.0f}"
    print(
        f"{case.name:34}{ours:10.1f}{rates}   {case.peer_name:28}{peer:10.1f}{peer / ours:8.2f}", flush=True
    )


def attention_batch(requests: int, context: int, queries: int) -> tuple[AttentionBatch, int]:
    per_request = -(-context // BLOCK_TOKENS)
    tables = (torch.randperm(requests * per_request) + 1).view(requests, per_request).int()
    position = torch.arange(context - queries, context)
    slots = tables[:, position // BLOCK_TOKENS].long() * BLOCK_TOKENS + position % BLOCK_TOKENS
    batch = AttentionBatch(
        query_start=torch.arange(requests + 1, dtype=torch.int32) * queries,
        context_lens=torch.full((requests,), context, dtype=torch.int32),
        tables=tables,
        slots=slots.flatten(),
        positions=position.repeat(requests),
        num_decodes=requests if queries == 1 else 0,
        max_query_len=queries,
        max_context_len=context,
        block_tokens=BLOCK_TOKENS,
    )
    return batch, requests * per_request + 1


def random_cache(num_blocks: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(num_blocks, 2, LAYOUT.num_kv_heads, BLOCK_TOKENS, LAYOUT.head_dim).to(dtype)


def gathered_attention(q: Tensor, batch: AttentionBatch, cache: Tensor) -> Tensor:
    """What torch can do with a paged cache: copy the blocks together, then its own attention. Equal contexts only."""
    requests, context = batch.num_requests, batch.max_context_len
    both = cache[batch.tables.long()].permute(2, 0, 3, 1, 4, 5).flatten(3, 4)[:, :, :, :context]
    queries = q.view(requests, -1, LAYOUT.num_heads, LAYOUT.head_dim).transpose(1, 2)
    causal = queries.shape[2] > 1
    return functional.scaled_dot_product_attention(
        queries, both[0], both[1], is_causal=causal, enable_gqa=True
    )


def attention_case(
    kernels: CpuKernels, requests: int, context: int, queries: int, dtype: torch.dtype
) -> Case:
    batch, num_blocks = attention_batch(requests, context, queries)
    caches = [random_cache(num_blocks, dtype) for _ in range(LAYERS if queries == 1 else 2)]
    q = torch.randn(requests * queries, LAYOUT.num_heads, LAYOUT.head_dim).to(dtype)
    pairs = requests * queries * (2 * context - queries + 1) / 2 * LAYOUT.num_heads
    return Case(
        f"attend {requests}x{context} q{queries} {str(dtype)[6:]}",
        "gather + torch sdpa",
        [partial(kernels.attend, q, LAYOUT, batch, cache, SCALE) for cache in caches],
        [partial(gathered_attention, q, batch, cache) for cache in caches],
        2 * requests * context * LAYOUT.kv_size * dtype.itemsize,
        4 * pairs * LAYOUT.head_dim,
    )


def row_cases(kernels: CpuKernels, rows: int) -> list[Case]:
    """The kernels between the products, bfloat16: up to 64 rows are requests of one token each, more are a prompt."""
    batch, num_blocks = attention_batch(rows, 200, 1) if rows <= 64 else attention_batch(1, rows, rows)
    caches = [random_cache(num_blocks, torch.bfloat16) for _ in range(LAYERS)]
    rope, weight = torch.randn(512, LAYOUT.head_dim), torch.randn(HIDDEN).bfloat16()
    x, residual, qkv, gate_up = (
        torch.randn(rows, width).bfloat16() for width in (HIDDEN, HIDDEN, LAYOUT.qkv_size, 2 * INTERMEDIATE)
    )

    def torch_norm() -> Tensor:
        residual.add_(x)
        return functional.rms_norm(residual, (HIDDEN,), weight, 1e-5)

    def torch_silu() -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def all_layers(call: Call) -> list[Call]:
        return [call] * LAYERS

    def rotate(kernels: Kernels) -> list[Call]:
        return [partial(kernels.rotate_and_store, qkv, LAYOUT, rope, batch, cache) for cache in caches]

    norm, silu = lambda: kernels.add_rms_norm(x, residual, weight, 1e-5), lambda: kernels.silu_mul(gate_up)
    return [
        Case(
            f"rotate_and_store {rows}",
            "torch twin",
            rotate(kernels),
            rotate(ReferenceKernels()),
            2 * qkv.nbytes,
            6 * qkv.numel(),
        ),
        Case(
            f"add_rms_norm {rows}",
            "torch",
            all_layers(norm),
            all_layers(torch_norm),
            4 * x.nbytes,
            6 * x.numel(),
        ),
        Case(f"silu_mul {rows}", "torch", all_layers(silu), all_layers(torch_silu), 1.5 * gate_up.nbytes, 0),
    ]


def onednn(out_features: int, in_features: int) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(torch.randn(out_features, in_features).bfloat16(), 16)
    return lambda x: torch.ops.mkldnn._linear_pointwise.default(x, packed, None, "none", [], "")


def torch_int4(out_features: int, in_features: int) -> Callable[[Tensor], Tensor]:
    numbers = torch.randint(0, 16, (out_features, in_features), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
    scales = torch.randn(in_features // 32, out_features, 2).bfloat16()
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, 32, scales)


def torch_int8(out_features: int, in_features: int) -> Callable[[Tensor], Tensor]:
    numbers = torch.randint(-128, 128, (out_features, in_features), dtype=torch.int8)
    scales = torch.randn(out_features).bfloat16()
    return lambda x: torch.ops.aten._weight_int8pack_mm(x, numbers, scales)


def shoal(kind: WeightKind, out_features: int, in_features: int) -> Callable[[Tensor], Tensor]:
    if kind == WeightKind.BF16:
        return cpu_linear.pack_bf16(torch.randn(out_features, in_features)).matmul
    blocks = torch.randint(0, 32, (out_features * in_features // 32 * BLOCK_BYTES[kind],), dtype=torch.uint8)
    if kind == WeightKind.Q8_0:
        return cpu_linear.pack_q8_0(blocks, out_features, in_features).matmul
    return cpu_linear.pack_q4(blocks, kind, out_features, in_features).matmul


PEERS = {
    WeightKind.BF16: onednn,
    WeightKind.Q4_0: torch_int4,
    WeightKind.Q4_1: torch_int4,
    WeightKind.Q8_0: torch_int8,
}


def linear_cases(kind: WeightKind, name: str, shapes: list[tuple[int, int]], layers: int) -> list[Case]:
    """The products of a layer together, as one call each."""
    ours = [[shoal(kind, *shape) for shape in shapes] for _ in range(layers)]
    peer = [[PEERS[kind](*shape) for shape in shapes] for _ in range(layers)]
    weights = sum(out_features * in_features for out_features, in_features in shapes)
    weight_bytes = 2.0 if kind == WeightKind.BF16 else BLOCK_BYTES[kind] / 32

    def call(products: list[Callable[[Tensor], Tensor]], rows: int) -> Call:
        inputs = [torch.randn(rows, in_features).bfloat16() for _, in_features in shapes]
        return lambda: [product(x) for product, x in zip(products, inputs, strict=True)]

    return [
        Case(
            f"{name} {kind.name} M={rows}",
            PEERS[kind].__name__,
            [call(products, rows) for products in ours],
            [call(products, rows) for products in peer],
            weights * weight_bytes,
            2.0 * weights * rows,
        )
        for rows in (1, 4, 16, 32)
    ]


def cases(kernels: CpuKernels) -> Iterator[Case]:
    """One after another: together their weights would not fit a small machine."""
    for dtype in (torch.bfloat16, torch.float32):
        for requests, context, queries in (
            (1, 200, 1),
            (16, 200, 1),
            (1, 4096, 1),
            (1, 512, 512),
            (1, 2048, 2048),
        ):
            yield attention_case(kernels, requests, context, queries, dtype)
    for rows in (1, 16, 512):
        yield from row_cases(kernels, rows)
    for kind in WeightKind:
        yield from linear_cases(kind, "layer", PRODUCTS, LAYERS)
        yield from linear_cases(kind, "lm_head", [(VOCABULARY, HIDDEN)], 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=2.0, help="per case")
    parser.add_argument("--only", default="", help="cases whose name starts with this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {options.threads} threads, best of {options.seconds:.0f} s")
    print(f"{'':34}{'us':>10}{'GB/s':>8}{'GFLOP/s':>9}   {'peer':28}{'us':>10}{'x':>8}")
    for case in cases(CpuKernels(load_library())):
        if case.name.startswith(options.only):
            report(case, options.seconds)


if __name__ == "__main__":
    main()
