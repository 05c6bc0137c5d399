"""Narrow tiles of the fused decode products on one H200: right first, then microseconds beside the tiles in use.

    PYTHONPATH=engine:crds python3 benchmarks/h200/narrow.py [--models 0.6b 8b] [--rows 2 8 16 32] [--products down]

A product is timed in a CUDA graph over so many layers' weights that no cache holds them, each kernel starting while the
one before it ends, as in a step; last, all four products of a layer after one another. Best first.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any

import torch
from fused_decode import write
from fused_models import CONFIGS, MAX_POSITIONS, fused, random_case
from graph_clock import us_per_call
from torch import Tensor

from shoal_engine.forks import fork
from shoal_engine.fused_choice import RowsTiles
from shoal_engine.fused_decode import FusedDecode
from shoal_engine.kernels.cuda import CudaKernels
from shoal_engine.kernels.fused_tiles import NarrowTile, ProductTile, product_tile, row_block
from shoal_engine.kernels.gpu import H200
from shoal_engine.kernels.triton_builds import compile_all, foreseen
from shoal_engine.kernels.triton_fused_operands import FusedWeight, PartialSums, Stream
from shoal_engine.kernels.triton_fused_product import multiply_rows
from shoal_engine.models.llama import Llama
from shoal_engine.weights import RandomWeights

ODD = {8: (1, 3, 8), 16: (13, 16), 32: (31, 32)}  # rows that a block is checked with
SIZES = (1.0, 1e-3, 2.5e4)  # of the numbers in x that tiles are checked with: some of the last reach 10^5
TOLERANCE = 5e-3
EPS = 1e-6
LAYERS = {"0.6b": 28, "8b": 10}
STEP_LAYERS = 10
CONTEXT = 577
Tile = NarrowTile | ProductTile
SHOWN, TRIED = 4, 5  # tiles that are printed, and those that are tried beside the other products'


@dataclass(frozen=True)
class Product:
    """One of a layer's four: weight [n, k] as it lies in memory."""

    name: str
    n: int
    k: int

    @property
    def gated(self) -> bool:
        return self.name == "gate_up"

    @property
    def adds(self) -> bool:
        return self.name in ("output", "down")

    @property
    def columns(self) -> int:
        return self.n // 2 if self.gated else self.n


SHAPES = {
    "0.6b": (Product("qkv", 4096, 1024), Product("output", 1024, 2048),
             Product("gate_up", 6144, 1024), Product("down", 1024, 3072)),
    "8b": (Product("qkv", 6144, 4096), Product("output", 4096, 4096),
           Product("gate_up", 28672, 4096), Product("down", 4096, 14336)),
}  # fmt: skip


@dataclass(frozen=True)
class Space:
    """What the products of a step read and write, for some rows of a model."""

    inputs: dict[str, Tensor]  # by product
    outputs: dict[str, Tensor]
    stream: Stream
    gain: Tensor
    sums: PartialSums
    squares: int

    @classmethod
    def of(cls, model: str, rows: int, device: str, float8: bool = False, size: float = 1.0) -> Space:
        products, width = SHAPES[model], SHAPES[model][0].k
        like: dict[str, Any] = {"dtype": torch.bfloat16, "device": device}
        numbers: dict[str, Any] = {"dtype": torch.float32, "device": device}
        squares = width // 64
        # What is written for products of float8 weights: a sixteenth of it.
        operands: dict[str, Any] = {"dtype": torch.float16 if float8 else torch.bfloat16, "device": device}
        stream = Stream(
            torch.empty((rows, width), **like).normal_(), torch.empty((rows, width), **operands),
            torch.empty((rows * width // 16,), **numbers).uniform_(1, 2).mul_(size**2),
        )  # fmt: skip
        sums = PartialSums(
            torch.empty((2**23,), **numbers), torch.zeros((8192,), dtype=torch.int32, device=device)
        )
        inputs = {p.name: torch.empty((rows, p.k), **like).normal_(std=size) for p in products}
        if float8:
            inputs = {name: (x / 16).half() for name, x in inputs.items()}
        outputs = {p.name: torch.empty((rows, p.columns), **operands if p.gated else like) for p in products}
        return cls(inputs, outputs, stream, torch.empty((width,), **like).uniform_(0.5, 1.5), sums, squares)


def call(product: Product, tile: Tile, space: Space, weight: FusedWeight) -> None:
    x = space.inputs[product.name]
    normed = None if product.adds else space.stream
    stream = space.stream if product.adds else None
    gain = space.gain if product.adds else None
    out = space.outputs[product.name]
    multiply_rows(
        x, weight, out, tile, space.sums, True, normed, space.squares, EPS, product.gated, stream, gain
    )


def meant(stored: Tensor) -> Tensor:
    """In float32: float16 holds a sixteenth."""
    return stored.float() * (16 if stored.dtype == torch.float16 else 1)


def twin(product: Product, space: Space, weight: FusedWeight, before: Tensor) -> list[Tensor]:
    """In float32: out; or hidden, scaled and the whole row's sum of squares."""
    x, values = meant(space.inputs[product.name]), weight.values.float()
    if weight.scale is not None:
        values *= weight.scale[:, None]
    result = x @ values.T
    if not product.adds:
        rows = len(x)
        squares = space.stream.squares[: rows * space.squares].view(rows, -1).sum(1, keepdim=True)
        result *= torch.rsqrt(squares / product.k + EPS)
        if product.gated:
            gate, up = result.chunk(2, 1)
            result = torch.nn.functional.silu(gate) * up
        return [result]
    result = (before.float() + result).bfloat16().float()
    return [result, result * space.gain.float(), result.square().sum(1)]


def errors(product: Product, tile: Tile, space: Space, weight: FusedWeight) -> float:
    """The worst relative error of what a product writes; its outputs are poisoned first."""
    before = space.stream.hidden.clone()
    want = twin(product, space, weight, before)
    if product.adds:
        space.stream.scaled.fill_(float("nan"))
        space.stream.squares.fill_(float("nan"))
    else:
        space.outputs[product.name].fill_(float("nan"))
    call(product, tile, space, weight)
    got = [space.outputs[product.name]]
    if product.adds:
        rows, tiles = len(before), -(-product.n // tile.block_n)
        squares = space.stream.squares[: rows * tiles].view(rows, tiles).sum(1)
        got = [space.stream.hidden.clone(), space.stream.scaled.clone(), squares]
        space.stream.hidden.copy_(before)
        space.stream.squares.uniform_(1, 2)
    return max(error(g, w) for g, w in zip(got, want, strict=True))


def error(got: Tensor, want: Tensor) -> float:
    """float16 ends at its largest number."""
    most = 16 * torch.finfo(got.dtype).max if got.dtype == torch.float16 else float("inf")
    want = want.clamp(-most, most)
    return float((meant(got) - want).norm() / want.norm())


def tiles_of(product: Product, block_m: int, packed: int) -> Iterator[Tile]:
    """Narrow tiles whose loads in flight fit the registers."""
    chunk, low = 32 * packed, (16,) if packed == 2 else (16, 32)
    for block_n, warps in itertools.product(low if product.adds else (16, 32, 64), (4, 8, 16)):
        steps, programs = product.k // (warps * chunk), product.n // block_n
        if product.k % (warps * chunk) or programs < 32 or programs * warps < 256:
            continue
        for head in sorted({steps, 4, 3, 2, 1}):
            words = head * chunk * (block_n * 2 // packed + block_m) // 64
            room = words + block_n * block_m // 32 + (60 if head < steps else 30)
            if head <= steps and steps % head == 0 and room <= min(248, 2**16 // (32 * warps)):
                for early in (True,) if block_m == 8 else (True, False):
                    yield NarrowTile(block_n, warps, head, early)


def random_weight(product: Product, float8: bool, device: str = "cuda") -> FusedWeight:
    values = torch.empty((product.n, product.k), dtype=torch.bfloat16, device=device).normal_(
        std=product.k**-0.5
    )
    if not float8:
        return FusedWeight(values)
    scale = torch.empty((product.n,), dtype=torch.float32, device=device).uniform_(0.01, 0.02)
    return FusedWeight((values * 60).to(torch.float8_e4m3fn), scale)


def jobs_of(options: argparse.Namespace) -> list[tuple[str, Product, int, list[Tile]]]:
    packed = 4 if options.float8 else 2
    return [
        (model, product, rows, [*tiles_of(product, row_block(rows), packed),
                                product_tile(product.n, product.k, rows, True, options.float8)])
        for rows in options.rows
        for model in options.models
        for product in SHAPES[model]
        if not options.products or product.name in options.products
    ]  # fmt: skip


def compile_ahead(options: argparse.Namespace) -> int:
    """Every kernel of the jobs, by as many processes as there are processors; in a fork, which can launch nothing."""

    def walk() -> None:
        for model, product, rows, tiles in jobs_of(options):
            space = Space.of(model, rows, "meta", options.float8)
            weight = random_weight(product, options.float8, "meta")
            for tile, block in itertools.product(tiles, (64,) if product.adds else (64, 16)):
                call(product, tile, replace(space, squares=SHAPES[model][0].k // block), weight)

    builds = foreseen(H200, walk)
    print(f"{len(builds)} kernels", flush=True)
    return compile_all(builds, H200, os.cpu_count() or 1)


def shown(tile: Tile) -> str:
    return f"{'narrow ' if isinstance(tile, NarrowTile) else ''}{astuple(tile)}"


def measure(
    model: str, product: Product, rows: int, tiles: Sequence[Tile], weights: list[FusedWeight]
) -> list[Tile]:
    """Print every tile's time in a chain of itself; those that are right, best first."""
    found: list[tuple[float, float, Tile]] = []
    float8 = weights[0].scale is not None
    space = Space.of(model, rows, "cuda", float8)
    for tile in tiles:
        try:
            worst = 0.0
            if isinstance(tile, NarrowTile):
                worst = max(
                    errors(product, tile, Space.of(model, odd, "cuda", float8, size), weights[0])
                    for odd, size in itertools.product(ODD[row_block(rows)], SIZES)
                )
            us = us_per_call(partial(call, product, tile, space), weights, 5)
            found.append((us, worst, tile))
        except Exception as failure:
            print(f"  {tile}: {type(failure).__name__} {str(failure)[:150]}", flush=True)
    found.sort(key=lambda one: one[0])
    used = next((us for us, _, tile in found if tile == tiles[-1]), 0.0)
    wrong = [one for one in found if not one[1] <= TOLERANCE]
    print(
        f"{model} rows {rows} {product.name} {product.n}x{product.k}: in use {used:.2f} us, {len(wrong)} WRONG"
    )
    for us, error, tile in [*found[:SHOWN], *wrong[:4]]:
        print(f"  {us:6.2f} {us / max(used, 1e-9):.2f} {error:.0e} {shown(tile)}", flush=True)
    return [tile for _, error, tile in found if error <= TOLERANCE]


def chain_us(model: str, rows: int, tiles: Sequence[Tile], weights: Sequence[list[FusedWeight]]) -> float:
    """Of a layer's four products after one another."""
    space = Space.of(model, rows, "cuda")

    def layer(index: int) -> None:
        for product, tile, of_layers in zip(SHAPES[model], tiles, weights, strict=True):
            call(product, tile, space, of_layers[index])

    return us_per_call(layer, range(LAYERS[model]), 7)


def step_us(model: str, rows: int) -> Callable[[Sequence[Tile]], float]:
    """Of a layer within a whole step of a model with fewer layers, attention and norms included."""
    config = replace(CONFIGS[model], num_layers=STEP_LAYERS, vocab_size=1024)
    short = Llama(config, RandomWeights(torch.bfloat16, torch.device("cuda")), CudaKernels(), MAX_POSITIONS)
    decode, case = FusedDecode(short, rows), random_case(short, rows, CONTEXT)
    step = fused(case, decode)

    def time_of(tiles: Sequence[Tile]) -> float:
        decode.use(rows, RowsTiles(*tiles))
        return us_per_call(lambda _: step(), [None], 7) / STEP_LAYERS

    return time_of


def descend(
    time_of: Callable[[Sequence[Tile]], float],
    starts: Sequence[list[Tile]],
    candidates: Sequence[Sequence[Tile]],
) -> tuple[float, list[Tile]]:
    """From the best start, the best of each product's candidates in turn beside what is best of the others."""
    best, tiles = min(((time_of(start), start) for start in starts), key=lambda pair: pair[0])
    for at, of_product in enumerate(candidates):
        for tile in of_product:
            other = [*tiles[:at], tile, *tiles[at + 1 :]]
            us = time_of(other)
            if us < best:
                best, tiles = us, other
    return best, tiles


def together(
    model: str, rows: int, candidates: Sequence[Sequence[Tile]], weights: Sequence[list[FusedWeight]]
) -> dict[tuple[int, int, int], tuple[Any, ...]]:
    """Table rows: what is best beside the others is not what is best alone."""
    used = [product_tile(product.n, product.k, rows, True) for product in SHAPES[model]]
    alone = [of_product[0] for of_product in candidates]
    tried = [[*of_product[:TRIED], tile] for of_product, tile in zip(candidates, used, strict=True)]
    ways = {
        "four products": lambda tiles: chain_us(model, rows, tiles, weights),
        "a layer of a step": step_us(model, rows),
    }
    for name, time_of in ways.items():
        us, tiles = descend(time_of, [used, alone], tried)
        before, between = time_of(used), time_of(alone)
        print(f"{model} rows {rows} {name}: {before:.2f} us in use, {between:.2f} best alone, {us:.2f} with")
        for product, tile in zip(SHAPES[model], tiles, strict=True):
            print(f"    ({product.n}, {product.k}, {row_block(rows)}): {shown(tile)},", flush=True)
    return {(p.n, p.k, row_block(rows)): astuple(t) for p, t in zip(SHAPES[model], tiles, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=sorted(SHAPES), choices=sorted(SHAPES))
    parser.add_argument("--rows", nargs="+", type=int, default=[2, 8, 16, 32])
    parser.add_argument("--products", nargs="*", default=[])
    parser.add_argument(
        "--float8", action="store_true", help="weights of float8_e4m3 with a scale for each row"
    )
    parser.add_argument("--write", action="store_true", help="the table of tiles, as fused_decode.py does")
    options = parser.parse_args()
    if options.write and options.float8:
        parser.error("--write knows the table of bfloat16; what --float8 prints goes into FLOAT8 by hand")
    began = time.monotonic()
    os.waitpid(fork(lambda: compile_ahead(options)), 0)
    print(f"compiled at {time.monotonic() - began:.0f} s", flush=True)
    torch.manual_seed(0)
    weights: dict[tuple[str, str], list[FusedWeight]] = {}
    best: dict[tuple[str, int], list[list[Tile]]] = {}
    table: dict[tuple[int, int, int], tuple[Any, ...]] = {}
    for model, product, rows, tiles in jobs_of(options):
        key = (model, product.name)
        if key not in weights:
            weights[key] = [random_weight(product, options.float8) for _ in range(LAYERS[model])]
        found = measure(model, product, rows, tiles, weights[key])
        best.setdefault((model, rows), []).append(found)
    print(f"alone done at {time.monotonic() - began:.0f} s", flush=True)
    for (model, rows), candidates in best.items():
        if len(candidates) == len(SHAPES[model]) and not options.float8:
            of_model = [weights[model, product.name] for product in SHAPES[model]]
            try:
                table.update(together(model, rows, candidates, of_model))
            except Exception:
                traceback.print_exc()
    if options.write:
        write(table, torch.cuda.get_device_name())
    print(f"done at {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
