"""Greedy tokens of the GPU engine against transformers in float32 on the CPU, for tiny models in every way to batch them.

    python benchmarks/h200/tokens.py [--models qwen3 ...]

float32 must agree token for token. In bfloat16, whose reference has the same rounded weights, a request may leave the
reference where the reference's two best logits are closer than NEAR_TIE of its largest; after that it is another text
and is not compared. Exit status 1 on a difference.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "engine"), str(ROOT / "crds")]

import torch  # noqa: E402
from builders import TINY, greedy, prompts, save_tiny  # type: ignore[import-not-found]  # noqa: E402  # of tests/

from shoal_engine import LLM, SamplingParams  # noqa: E402
from shoal_engine.messages import Submit  # noqa: E402

NEW_TOKENS = 24
PARAMS = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
NEAR_TIE = 0.03
Tokens = list[list[int]]


def load(folder: Path, **options: Any) -> LLM:
    defaults = {"max_model_len": 256, "kv_cache_memory_bytes": 2**24, "max_num_seqs": 32, "device": "cuda"}
    return LLM(str(folder), **{**defaults, **options})


def together(llm: LLM, texts: Tokens) -> Tokens:
    results = llm.generate([{"prompt_token_ids": text} for text in texts], PARAMS)
    return [result.outputs[0].token_ids for result in results]


def joining(llm: LLM, texts: Tokens) -> Tokens:
    got: dict[str, list[int]] = {f"r{i}": [] for i in range(len(texts))}
    waiting = [Submit(f"r{i}", text, PARAMS) for i, text in enumerate(texts)]
    steps = 0
    while waiting or llm.engine.has_work:
        if waiting and steps % 2 == 0:
            llm.engine.add(waiting.pop(0))
        for output in llm.engine.step():
            got[output.id] += output.token_ids
        steps += 1
    return list(got.values())


def twice(llm: LLM, texts: Tokens) -> Tokens:
    together(llm, texts)
    return together(llm, texts)


def ways(dtype: str) -> dict[str, tuple[dict[str, Any], Callable[[LLM, Tokens], Tokens]]]:
    one: dict[str, Any] = {"dtype": dtype}
    return {
        "alone": (one, lambda llm, texts: [together(llm, [text])[0] for text in texts]),
        "joining": (one, joining),
        "chunks of 7": ({**one, "max_num_batched_tokens": 7, "max_num_seqs": 7}, together),
        "chunks of 33": ({**one, "max_num_batched_tokens": 33}, together),
        "prefix hits": (one, twice),
        "no prefix cache": ({**one, "enable_prefix_caching": False}, together),
        "preempted": ({**one, "kv_cache_memory_bytes": "tight", "max_model_len": 128}, together),
        "blocks of 64": ({**one, "block_size": 64}, together),
    }


def tight_cache_bytes(config: Any) -> int:
    """Room for one request of 128 tokens and a few of the others, so that requests are preempted."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    num_bytes: int = 18 * 16 * 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * 4
    return num_bytes


def differences(model: Any, texts: Tokens, expected: Tokens, got: Tokens, exact: bool) -> list[str]:
    found = []
    for i, (text, want, have) in enumerate(zip(texts, expected, got, strict=True)):
        if have == want:
            continue
        at = next((j for j, (a, b) in enumerate(zip(want, have, strict=False)) if a != b), None)
        if at is None:
            found.append(f"request {i}: {len(have)} tokens, not {len(want)}")
            continue
        with torch.no_grad():
            logits = model(torch.tensor([text + want[:at]])).logits[0, -1]
        gap = float(logits[want[at]] - logits[have[at]]) / float(logits.abs().max())
        if exact or gap > NEAR_TIE:
            found.append(f"request {i} token {at}: {have[at]} for {want[at]}, gap {gap:.4f}")
    return found


def check(name: str) -> int:
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny(name, Path(folder))
        texts = prompts(16, model.config.vocab_size)
        for dtype in ("float32", "bfloat16"):
            if dtype == "bfloat16":  # the same weights as on the GPU, rounded, in float32 arithmetic
                model = model.to(torch.bfloat16).to(torch.float32)
            expected = [greedy(model, text, NEW_TOKENS) for text in texts]
            for way, (options, run) in ways(dtype).items():
                options = dict(options)
                if options.get("kv_cache_memory_bytes") == "tight":
                    options["kv_cache_memory_bytes"] = tight_cache_bytes(model.config)
                try:
                    llm = load(Path(folder), **options)
                    found = differences(model, texts, expected, run(llm, texts), dtype == "float32")
                    preempted = llm.engine.stats().num_preemptions
                except Exception:
                    found, preempted = [traceback.format_exc(limit=-3)], 0
                bad += bool(found)
                note = f" ({preempted} preempted)" if preempted else ""
                print(f"{name:15} {dtype:9} {way:16} {'; '.join(found[:2]) or 'equal'}{note}", flush=True)
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=TINY, default=list(TINY))
    bad, started = 0, time.perf_counter()
    for name in parser.parse_args().models:
        bad += check(name)
    print(f"{bad} differ, {time.perf_counter() - started:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
