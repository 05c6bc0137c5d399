"""`--deterministic` on a GPU: the same request gives the same tokens alone and in any mix; and what that costs.

    python benchmarks/h200/deterministic.py [--prompts 300 --mixes 8] [--only kernels|times|engine] [--compare]

First every kernel alone, bits against bits. Then whole engines with random weights: each prompt by itself in an engine of
one seat without a prefix cache, then mixes in random order and company: large batches, cache hits, small chunks, and a
cache so small that requests are preempted. Exit status 1 on a difference. --compare shows the same mixes without the option.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shapes

Tokens = dict[str, list[int]]
NEW_TOKENS = 12
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 0.0, "repetition_penalty": 1.2},
    {"temperature": 0.9, "top_k": 40},
]
ENGINES: list[tuple[str, int, dict[str, Any]]] = [  # the number is how many tokens the KV cache holds
    ("large batches", 140_000, {"max_num_seqs": 256}),
    ("small chunks", 70_000, {"max_num_seqs": 48, "max_num_batched_tokens": 96}),
    ("preempted", 4_600, {"max_num_seqs": 64, "max_num_batched_tokens": 700}),
]


def make_prompts(count: int, vocab: int, most: int, seed: int) -> dict[str, list[int]]:
    """Of 1 to 600 tokens, at most `most`; two thirds begin like others, so that they meet in the prefix cache."""
    rng = random.Random(seed)
    families = [[rng.randrange(vocab) for _ in range(rng.choice((40, 64, 300)))] for _ in range(12)]
    prompts = {}
    for index in range(count):
        head = rng.choice(families)[: rng.randint(8, 300)] if index % 3 else []
        tail = [rng.randrange(vocab) for _ in range(rng.choice((1, 5, 17, 64, 130, 300)))]
        prompts[f"p{index}"] = (head + tail)[-most:]
    return prompts


def load(
    folder: Path, args: argparse.Namespace, deterministic: bool, cache_tokens: int, **options: Any
) -> Any:
    from shoal_engine import LLM

    config = shapes.SHAPES[args.model].config
    heads = config["num_hidden_layers"] * config["num_key_value_heads"]
    return LLM(
        str(folder),
        load_format="dummy",
        device=args.device,
        dtype="bfloat16",
        max_model_len=_positions(config),
        kv_cache_memory_bytes=cache_tokens * heads * config["head_dim"] * 2 * 2,
        deterministic=deterministic,
        **options,
    ).engine


def _positions(config: dict[str, Any]) -> int:
    return min(1024, int(config["max_position_embeddings"]))


def drive(engine: Any, prompts: dict[str, list[int]], rng: random.Random | None) -> tuple[Tokens, int]:
    """Tokens by request, and prompt tokens that came from the prefix cache. rng mixes the order; None: one by one."""
    from shoal_engine import SamplingParams
    from shoal_engine.messages import Submit

    waiting = list(prompts)
    if rng is not None:
        rng.shuffle(waiting)
    tokens: Tokens = {name: [] for name in prompts}
    cached = 0
    while waiting or engine.has_work:
        joining = rng.choice((0, 1, 8, 100)) if rng is not None else 0 if engine.has_work else 1
        for name in waiting[:joining]:
            seed = int(name[1:])
            params = SamplingParams(
                **KINDS[seed % len(KINDS)],
                seed=seed,
                max_tokens=NEW_TOKENS,
                ignore_eos=True,
                detokenize=False,
            )
            engine.add(Submit(name, prompts[name], params))
        del waiting[:joining]
        for output in engine.step():
            if output.finish_reason == "error":
                raise RuntimeError(f"{output.id}: {output.error_message}")
            tokens[output.id] += output.token_ids
            cached += output.num_cached_tokens or 0
    return tokens, cached


def mixes(
    args: argparse.Namespace, folder: Path, prompts: dict[str, list[int]], alone: Tokens, deterministic: bool
) -> bool:
    good = True
    for place, (name, cache_tokens, options) in enumerate(ENGINES[: args.mixes]):
        engine = load(folder, args, deterministic, cache_tokens, **options)
        for mix in range(place, args.mixes, len(ENGINES)):
            started = time.monotonic()
            got, cached = drive(engine, prompts, random.Random(mix))
            different = [one for one in prompts if got[one] != alone[one]]
            good &= not different
            print(
                f"{'deterministic' if deterministic else 'fast'} mix {mix}, {name}: {len(different)} of {len(prompts)}"
                f" differ, {cached} tokens cached, {engine.stats().num_preemptions} preemptions so far,"
                f" {time.monotonic() - started:.1f} s  {different[:3]}",
                flush=True,
            )
        del engine
    return good


def engines(args: argparse.Namespace) -> bool:
    shape = shapes.SHAPES[args.model]
    with tempfile.TemporaryDirectory() as name:
        folder = shape.write(Path(name))
        prompts = make_prompts(args.prompts, shape.vocab, _positions(shape.config) - NEW_TOKENS, args.seed)
        started = time.monotonic()
        engine = load(folder, args, True, 4096, max_num_seqs=1, enable_prefix_caching=False)
        loaded = time.monotonic()
        alone, _ = drive(engine, prompts, None)
        print(
            f"alone: loaded in {loaded - started:.1f} s, {len(prompts)} prompts in {time.monotonic() - loaded:.1f} s"
        )
        del engine
        good = mixes(args, folder, prompts, alone, True)
        if args.compare:
            mixes(args, folder, prompts, alone, False)
    return good


def attempt(work: Callable[..., bool | None], *arguments: object) -> bool:
    try:
        return work(*arguments) is not False
    except Exception:
        print(traceback.format_exc(limit=-4), flush=True)
        return False


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--mixes", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="0.6b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", default=["kernels", "times", "engine"])
    parser.add_argument("--compare", action="store_true")
    args = parser.parse_args()
    began, good = time.monotonic(), True
    if {"kernels", "times"} & set(args.only):
        import deterministic_proofs as proofs
        import deterministic_times as times
        import torch

        torch.manual_seed(0)
        with torch.inference_mode():
            if "kernels" in args.only:
                results = [
                    attempt(one)
                    for one in (proofs.products, proofs.rotation, proofs.attention, proofs.rows_alone)
                ]
                good &= all(results)
            if "times" in args.only:
                attempt(times.product_times, (1, 8, 32, 64, 128, 256, 1024, 8192))
                attempt(times.attention_times)
    if "engine" in args.only:
        good &= attempt(engines, args)
    print(f"{'deterministic' if good else 'NOT DETERMINISTIC'}; took {time.monotonic() - began:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
