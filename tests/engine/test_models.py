"""Greedy tokens equal transformers' in float32, for every architecture, whatever the engine does around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shoal_engine import LLM, SamplingParams
from shoal_engine.messages import Submit
from tests.builders import TINY, greedy, prompts, save_tiny, smollm2

NEW_TOKENS = 20
PARAMS = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)


@pytest.fixture(scope="module", params=sorted(TINY))
def tiny(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[list[int]], list[list[int]]]:
    """A checkpoint folder, 16 prompts, and what transformers generates after each."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    model = save_tiny(request.param, folder)
    texts = prompts(16, model.config.vocab_size)
    return folder, texts, [greedy(model, text, NEW_TOKENS) for text in texts]


def load(folder: Path, **options: Any) -> LLM:
    return LLM(str(folder), **{"dtype": "float32", "num_threads": 1, "max_model_len": 256, **options})


def generate(llm: LLM, texts: list[list[int]]) -> list[list[int]]:
    results = llm.generate([{"prompt_token_ids": text} for text in texts], PARAMS)
    return [result.outputs[0].token_ids for result in results]


def test_one_request_at_a_time(tiny: Any) -> None:
    folder, texts, expected = tiny
    llm = load(folder)
    assert [generate(llm, [text])[0] for text in texts[:6]] == expected[:6]


def test_a_batch_that_requests_join_and_leave(tiny: Any) -> None:
    folder, texts, expected = tiny
    llm = load(folder, max_num_seqs=16)
    got: dict[str, list[int]] = {f"r{i}": [] for i in range(len(texts))}
    waiting = [Submit(f"r{i}", text, PARAMS) for i, text in enumerate(texts)]
    steps = 0
    while waiting or llm.engine.has_work:
        if waiting and steps % 2 == 0:
            llm.engine.add(waiting.pop(0))
        for output in llm.engine.step():
            got[output.id] += output.token_ids
        steps += 1
    assert list(got.values()) == expected


@pytest.mark.parametrize("budget", [7, 33])
def test_prompts_cut_at_odd_sizes(tiny: Any, budget: int) -> None:
    folder, texts, expected = tiny
    assert generate(load(folder, max_num_batched_tokens=budget), texts) == expected


def test_with_a_prefix_hit_and_without_a_prefix_cache(tiny: Any) -> None:
    folder, texts, expected = tiny
    llm = load(folder)
    assert generate(llm, texts) == expected
    again = llm.generate([{"prompt_token_ids": text} for text in texts], PARAMS)
    assert [result.outputs[0].token_ids for result in again] == expected
    assert [result.num_cached_tokens for result in again] == [(len(text) - 1) // 16 * 16 for text in texts]
    assert generate(load(folder, enable_prefix_caching=False), texts) == expected


def test_after_preemption_by_a_cache_that_is_too_small(tiny: Any) -> None:
    folder, texts, expected = tiny
    model_len, block_tokens = 128, 16
    config = load(folder).engine.config
    block_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * block_tokens * 4
    memory_bytes = block_bytes * (model_len // block_tokens + 4)
    llm = load(folder, max_model_len=model_len, max_num_batched_tokens=64, kv_cache_memory_bytes=memory_bytes)
    assert generate(llm, texts) == expected
    assert llm.engine.stats().num_preemptions > 0


def test_smollm2_on_twenty_prompts() -> None:
    """The real model: 20 prompts together, in odd chunks, then again from the cache; float32 on the dequantised weights."""
    transformers = pytest.importorskip("transformers")
    path = smollm2()
    torch.set_num_threads(2)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    llm = LLM(str(path), dtype="float32", max_model_len=512, max_num_batched_tokens=97)
    texts = [llm.tokenizer.encode(text) for text in QUESTIONS]
    expected = [greedy(oracle, text, NEW_TOKENS) for text in texts]
    assert generate(llm, texts) == expected
    assert generate(llm, texts) == expected  # from the prefix cache


QUESTIONS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village by the sea,",
    "Water boils at",
    "SELECT name, age FROM users WHERE",
    "The three laws of thermodynamics state that",
    "Dear Sir or Madam,\n\nI am writing to",
    "Q: What is 17 + 25?\nA:",
    "La révolution française a commencé en",
    "Ingredients:\n- 2 eggs\n- 100 g flour\n-",
    "In machine learning, overfitting means",
    "The quick brown fox",
    "import numpy as np\n\nx = np.",
    "Roses are red, violets are blue,",
    '{"name": "Ada", "born":',
    "The mitochondria is the",
    "Kubernetes is an open source system for",
    "To be, or not to be,",
    "1, 1, 2, 3, 5, 8, 13,",
    "The largest planet in the solar system is",
]
