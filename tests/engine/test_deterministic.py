"""With `--deterministic` a request's tokens are the same alone and in any company, chunks or cache.

The model is wide enough that oneDNN's own choice of loops would show in bfloat16: without the option that case fails.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal_api.options import ModelOptions
from shoal_engine import cpu_backend
from shoal_engine.engine import Engine
from shoal_engine.errors import ModelLoadError
from shoal_engine.kernels.reference import ReferenceKernels
from shoal_engine.messages import Submit
from shoal_engine.sampling_params import SamplingParams

Tokens = dict[str, list[int]]
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 3072,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "hidden_act": "silu",
}
TOKEN_BYTES = 2 * 2 * 2 * 32  # layers, keys and values, heads, head size; times the size of a number
NEW_TOKENS = 6
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 30, "repetition_penalty": 1.2},
]
MIXES: dict[str, dict[str, Any]] = {
    "one large batch": {"max_num_seqs": 64},
    "small chunks": {"max_num_seqs": 20, "max_num_batched_tokens": 37},
    "preempted": {"max_num_seqs": 16, "cache_tokens": 320},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def load(folder: Path, dtype: str, cache_tokens: int = 8192, **options: Any) -> Engine:
    size = TOKEN_BYTES * getattr(torch, dtype).itemsize
    return Engine.load(
        ModelOptions(
            model=str(folder),
            load_format="dummy",
            dtype=dtype,  # type: ignore[arg-type]
            num_threads=1,
            deterministic=True,
            kv_cache_memory_bytes=cache_tokens * size,
            **options,
        )
    )


def make_prompts(count: int) -> dict[str, list[int]]:
    """Of 1 to 180 tokens; two thirds begin alike, so that they meet in the prefix cache."""
    rng = random.Random(0)
    head = [rng.randrange(1000) for _ in range(100)]
    return {
        f"p{i}": (head[: rng.randint(16, 100)] if i % 3 else [])
        + [rng.randrange(1000) for _ in range(rng.choice((1, 7, 33, 80)))]
        for i in range(count)
    }


def submit(name: str, prompt: list[int]) -> Submit:
    seed = int(name[1:])
    kind = KINDS[seed % len(KINDS)]
    return Submit(name, prompt, SamplingParams(**kind, seed=seed, max_tokens=NEW_TOKENS, ignore_eos=True))


def drive(engine: Engine, prompts: dict[str, list[int]], rng: random.Random | None) -> tuple[Tokens, int]:
    """Tokens by request, and cached prompt tokens. rng mixes order and arrival; without one they go one by one."""
    waiting = list(prompts)
    if rng is not None:
        rng.shuffle(waiting)
    tokens: Tokens = {name: [] for name in prompts}
    cached = 0
    while waiting or engine.has_work:
        count = rng.choice((0, 1, 3, 20)) if rng is not None else int(not engine.has_work)
        for name in waiting[:count]:
            engine.add(submit(name, prompts[name]))
        del waiting[:count]
        for output in engine.step():
            assert output.finish_reason != "error", output.error_message
            tokens[output.id] += output.token_ids
            cached += output.num_cached_tokens or 0
    return tokens, cached


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_tokens_do_not_depend_on_company_chunks_cache_or_preemption(folder: Path, dtype: str) -> None:
    prompts = make_prompts(18)
    alone, _ = drive(load(folder, dtype, max_num_seqs=1, enable_prefix_caching=False), prompts, None)
    assert len({tuple(tokens) for tokens in alone.values()}) > 13, "texts this alike would prove nothing"
    for seed, (name, options) in enumerate(MIXES.items()):
        engine = load(folder, dtype, **options)
        got, cached = drive(engine, prompts, random.Random(seed))
        assert got == alone, name
        assert cached > 0
        assert (engine.stats().num_preemptions > 0) == (name == "preempted")


def test_without_compiled_kernels_it_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_backend, "cpu_kernels", ReferenceKernels)
    with pytest.raises(ModelLoadError, match="install a C compiler"):
        load(folder, "float32")
