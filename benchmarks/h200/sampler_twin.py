"""The GPU's sampler beside the CPU's on the same logits: all options at once, requests joining and leaving.

    python benchmarks/h200/sampler_twin.py

Tokens must be the same but where a random number falls within rounding of a boundary (told as a share); logprobs agree to
1e-3. When tokens differ both samplers go on with the CPU's. Exit status 1 if more than TOLERATED of the draws differ.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "engine"), str(ROOT / "crds")]

import torch  # noqa: E402

from shoal_engine.cuda_sampler import CudaSampler  # noqa: E402
from shoal_engine.kernels.triton_sampling import SamplingSpace  # noqa: E402
from shoal_engine.sampler import Sampler  # noqa: E402
from shoal_engine.sampling_params import SamplingParams  # noqa: E402

VOCAB, STEPS, REQUESTS = 50_000, 60, 24
DEVICE = torch.device("cuda")
TOLERATED = 0.002
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 1.2, "top_k": 40, "top_p": 0.9},
    {"temperature": 0.7, "min_p": 0.05, "logprobs": 3},
    {"temperature": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"temperature": 0.0, "presence_penalty": 0.7, "logprobs": 0},
    {"temperature": 0.6, "logit_bias": {7: 4.0, 9: -5.0}, "min_tokens": 20, "stop_token_ids": [11, 12]},
    {"temperature": 0.5, "allowed_token_ids": list(range(100, 900))},
]


def main() -> int:
    rng = random.Random(0)
    torch.manual_seed(0)
    cpu = Sampler(VOCAB, torch.device("cpu"), seed=1)
    gpu = CudaSampler(VOCAB, DEVICE, 1, SamplingSpace(REQUESTS, VOCAB, DEVICE))
    prompts: dict[str, list[int]] = {}
    outputs: dict[str, list[int]] = {}
    asked: dict[str, SamplingParams] = {}
    draws = differing = 0
    worst = 0.0
    for step in range(STEPS):
        while len(prompts) < REQUESTS and rng.random() < 0.7:
            name = f"r{step}-{len(outputs)}"
            asked[name] = SamplingParams(max_tokens=99, seed=len(outputs), **KINDS[len(outputs) % len(KINDS)])
            prompts[name] = [rng.randrange(VOCAB) for _ in range(30)]
            outputs[name] = []
            for sampler in (cpu, gpu):
                sampler.add(name, asked[name], prompts[name], eos_ids=[2])
        ids = rng.sample(sorted(prompts), k=max(1, len(prompts) - 2)) if prompts else []
        if not ids:
            continue
        logits = (torch.randn(len(ids), VOCAB) * 4).bfloat16()
        want = cpu.sample(logits, ids)
        have = gpu.sample(logits.cuda(), ids).on_host()
        assert bool(want.ok.all())
        assert bool(have.ok.all())
        draws += len(ids)
        for row, name in enumerate(ids):
            token, drawn = int(want.token_ids[row]), int(have.token_ids[row])
            outputs[name].append(token)
            if token != drawn:
                differing += 1
                print(f"step {step} {asked[name]}: {drawn} for {token}")
                gpu.add(name, asked[name], prompts[name], outputs[name], [2])
        for mine, theirs in zip(want.logprobs() or [], have.logprobs() or [], strict=True):
            if mine is not None and theirs is not None and mine.chosen.token_id == theirs.chosen.token_id:
                worst = max(worst, abs(mine.chosen.logprob - theirs.chosen.logprob))
                assert abs(mine.chosen.rank - theirs.chosen.rank) <= 1
                for one, other in zip(mine.top, theirs.top, strict=True):  # among equals the order is open
                    worst = max(worst, abs(one.logprob - other.logprob))
        for name in [name for name in prompts if rng.random() < 0.05]:
            del prompts[name]
            for sampler in (cpu, gpu):
                sampler.remove(name)
    print(f"{draws} draws, {differing} differ; logprobs within {worst:.1e}")
    return int(differing > TOLERATED * draws or worst > 1e-3)


if __name__ == "__main__":
    raise SystemExit(main())
