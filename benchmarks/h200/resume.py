"""Requests that come with tokens another engine has generated: is their rest what it would have been? On a CPU or a GPU.

    python benchmarks/h200/resume.py [--layers 6 --hidden 1024 --prompts 3 --every 3]

Random weights in bfloat16. Each prompt is answered with 64 tokens, then once more from every third place on, all of these
in one batch. With --deterministic all rests must be the same, log probabilities to the last bit: exit status 1 otherwise.
Without it, what is printed is how often they are.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from shoal_api.options import ModelOptions
from shoal_engine.engine import Engine
from shoal_engine.messages import Submit, TokenLogprobs
from shoal_engine.sampling_params import SamplingParams

NEW_TOKENS = 64
VOCABULARY = 32_000
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0, "logprobs": 2},
    {"seed": 3, "logprobs": 0},
    {"seed": 4, "temperature": 0.8, "top_p": 0.9, "top_k": 40},
    {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.5},
]

Told = tuple[list[int], list[TokenLogprobs]]


def config(layers: int, hidden: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3 * hidden,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "hidden_act": "silu",
    }


def drive(engine: Engine, submits: list[Submit]) -> dict[str, Told]:
    told: dict[str, Told] = {submit.id: ([], []) for submit in submits}
    for submit in submits:
        engine.add(submit)
    while engine.has_work:
        for output in engine.step():
            if output.finish_reason == "error":
                raise SystemExit(f"{output.id}: {output.error_message}")
            told[output.id][0].extend(output.token_ids)
            told[output.id][1].extend(output.logprobs or [])
    return told


def compare(engine: Engine, prompts: int, every: int) -> tuple[int, int, int]:
    """Rests, those with the same tokens, and of these those with the same log probabilities."""
    chance = random.Random(0)
    rests = same = same_logprobs = 0
    for kind in KINDS:
        params = SamplingParams(**kind, max_tokens=NEW_TOKENS, ignore_eos=True)
        for _ in range(prompts):
            prompt = [chance.randrange(VOCABULARY) for _ in range(chance.choice((5, 60, 300)))]
            tokens, logprobs = drive(engine, [Submit("whole", prompt, params)])["whole"]
            cuts = range(1, NEW_TOKENS, every)
            submits = [Submit(str(cut), prompt, params, output_token_ids=tokens[:cut]) for cut in cuts]
            for name, (rest, entries) in drive(engine, submits).items():
                rests += 1
                same += rest == tokens[int(name) :]
                same_logprobs += rest == tokens[int(name) :] and (
                    not entries or entries == logprobs[int(name) :]
                )
    return rests, same, same_logprobs


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--prompts", type=int, default=3, help="of each kind of sampling")
    parser.add_argument("--every", type=int, default=3, help="tokens between two cuts")
    args = parser.parse_args()
    differ = 0
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config(args.layers, args.hidden)))
        for deterministic in (True, False):
            engine = Engine.load(
                ModelOptions(
                    model=folder,
                    load_format="dummy",
                    dtype="bfloat16",
                    deterministic=deterministic,
                    max_num_seqs=64,
                    kv_cache_memory_bytes=1 << 30,
                )
            )
            rests, same, logprobs = compare(engine, args.prompts, args.every)
            name = "--deterministic" if deterministic else "without it"
            print(
                f"{engine.ready.device}, {name}: {rests} rests, {same} with the same tokens, "
                f"{logprobs} with the same log probabilities too",
                flush=True,
            )
            differ += deterministic * (rests - logprobs)
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
