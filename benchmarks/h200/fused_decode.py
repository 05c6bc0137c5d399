"""The fused decode step on one H200: right first, then milliseconds of the whole step beside the unfused one.

    PYTHONPATH=engine python3 benchmarks/h200/fused_decode.py [--quick] [--models 0.6b 8b 8b-fp8] [--rows 1 8 32] [--write]

A step is embedding to sampled token in one CUDA graph, context 577. The sweep times each tile inside a graph of twelve
layers, because what is best there is not what is best alone, and leaves float8 out, whose tiles are `narrow.py`'s; --write
puts the best into kernels/fused_table.py, or into $OUT/fused_table.py where OUT is set.
"""

from __future__ import annotations

import argparse
import os
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from fused_models import (
    FLOAT8,
    Case,
    first_layers,
    fused,
    in_float32,
    random_case,
    random_model,
    unfused,
    with_sampling,
)
from fused_sweep import NAMES, compile_all, default_jobs, descend, graph_us, kernel_us, sweep_jobs
from kernel_cases import relative_error

from shoal_engine.fused_decode import FusedDecode
from shoal_engine.kernels import fused_table
from shoal_engine.models.llama import Llama

CONTEXT = 577
SHORT_LAYERS = 12
GOALS = {
    "0.6b": {1: 0.58, 8: 0.80, 32: 1.20}, "8b": {1: 3.8, 8: 4.1, 32: 4.6}, "8b-fp8": {1: 2.4, 8: 2.7, 32: 3.3},
}  # fmt: skip


def check(model: Llama, rows: int, layers: int) -> None:
    """Hidden states of both steps against the torch twins in float32; fused steps must agree to the bit."""
    case = random_case(first_layers(model, layers), rows, CONTEXT)
    exact = in_float32(case)
    twin = Case(case.model, case.token_ids, case.batch, case.cache.clone())
    want, cache = exact.model(exact.token_ids, exact.batch, exact.cache), exact.cache
    plain = relative_error(unfused(twin)(), want)
    step = fused(case, FusedDecode(case.model, rows))
    got = [step() for _ in range(3)]
    error, cache_error = relative_error(got[0], want), relative_error(case.cache, cache)
    same = all(torch.equal(one, got[0]) for one in got)
    verdict = "ok" if error <= 1.2 * plain and cache_error <= 1e-2 and same else "WRONG"
    print(
        f"{verdict} {layers} layers, rows {rows}: fused {error:.1e} unfused {plain:.1e} cache {cache_error:.1e} "
        f"repeats {same}", flush=True,
    )  # fmt: skip


def compare(name: str, model: Llama, rows: int, peer: bool) -> None:
    """Milliseconds of the whole step, and of each kernel in a chain of its own."""
    case = random_case(model, rows, CONTEXT)
    decode = FusedDecode(model, rows)
    steps = {"fused": with_sampling(case, fused(case, decode)), "without head": fused(case, decode)}
    if peer:
        steps["unfused"] = with_sampling(case, unfused(case))
    times = {label: round(graph_us(step, 15) / 1e3, 3) for label, step in steps.items()}
    print(f"{name:5} rows {rows:3} ms: {times} goal {GOALS[name].get(rows, '-')}", flush=True)
    each = kernel_us(case, decode)
    print(f"{name:5} rows {rows:3} us a layer: {each} sum {sum(each.values()):.1f}", flush=True)


def sweep(models: dict[str, Llama], options: argparse.Namespace, began: float) -> dict[Any, Any]:
    """The best tiles of every model and number of rows, as far as time goes."""
    found: dict[Any, Any] = {}
    cases = [(name, rows) for rows in options.sweep_rows for name in models]
    short = {name: first_layers(model, SHORT_LAYERS) for name, model in models.items()}
    jobs = [
        job
        for name, rows in cases
        for job in sweep_jobs(name, FusedDecode(short[name], rows), rows, swept(rows, options))
    ]
    attempt(compile_all, jobs, began + 0.62 * options.seconds)
    end = began + 0.9 * options.seconds
    for index, (name, rows) in enumerate(cases):
        deadline = time.monotonic() + (end - time.monotonic()) / (len(cases) - index)
        decode = FusedDecode(short[name], rows)
        print(f"{name}:", end=" ")
        rows_found = (
            attempt(descend, random_case(short[name], rows, CONTEXT), decode, swept(rows, options), deadline)
            or {}
        )
        print("".join(f"    {key}: {tile},\n" for key, tile in rows_found.items()), flush=True)
        found.update(rows_found)
    fused_table.TABLE.update(found)
    clear_choices()
    return found


def swept(rows: int, options: argparse.Namespace) -> list[str]:
    return list(NAMES if rows == 1 else options.kernels)


def clear_choices() -> None:
    from shoal_engine.kernels import fused_tiles

    for choice in (fused_tiles.gemv_tile, fused_tiles.product_tile):
        choice.cache_clear()


def attempt(call: Any, *arguments: Any) -> Any:
    """One variant that fails must not cost the others."""
    try:
        return call(*arguments)
    except Exception:
        print("FAILED", call.__name__)
        print("\n".join(line[:200] for line in traceback.format_exc().strip().splitlines()[-6:]), flush=True)
        return None


def write(found: dict[Any, Any], card: str) -> None:
    path = Path(fused_table.__file__)
    head = path.read_text().split("TABLE:")[0].rstrip()
    head, _, measured = head.partition("\n# Measured")
    table = dict(fused_table.TABLE) | found
    lines = [f"    {key}: {table[key]}," for key in sorted(table)]
    text = "\n".join(
        [head.rstrip(), "", f"# Measured{measured}".rstrip(), f"# Changed on one {card}, torch {torch.__version__}.",
         "TABLE: dict[tuple[int, int, int], tuple[int | bool, ...]] = {", *lines, "}", ""]
    )  # fmt: skip
    out = os.environ.get("OUT")
    (Path(out) / path.name if out else path).write_text(text)
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="no sweep")
    parser.add_argument("--models", nargs="+", default=["0.6b", "8b"], choices=sorted(GOALS))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--sweep-rows", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument(
        "--kernels", nargs="+", default=list(NAMES), choices=NAMES, help="which are swept at 2 rows and more"
    )
    parser.add_argument(
        "--seconds", type=float, default=200.0, help="of which a sweep uses what the rest leaves"
    )
    parser.add_argument("--no-peer", action="store_true", help="do not time the unfused step")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    began, card = time.monotonic(), torch.cuda.get_device_name()
    print(card, "torch", torch.__version__)
    every = [job for name in options.models for job in default_jobs(name, options.rows)]
    attempt(compile_all, every, began + 0.3 * options.seconds)
    models = {name: random_model(name) for name in options.models}
    report(models, options, peer=not options.no_peer)
    print(f"defaults done at {time.monotonic() - began:.0f} s", flush=True)
    if not options.quick:
        found = sweep({name: one for name, one in models.items() if FLOAT8 not in name}, options, began)
        print(f"sweep done at {time.monotonic() - began:.0f} s", flush=True)
        report(models, options, peer=False)
        if options.write:
            write(found, card)
    print(f"done at {time.monotonic() - began:.0f} s", flush=True)


def report(models: dict[str, Llama], options: argparse.Namespace, peer: bool) -> None:
    for name, model in models.items():
        for rows in options.rows:
            attempt(check, model, rows, 2)
            attempt(compare, name, model, rows, peer)


if __name__ == "__main__":
    main()
