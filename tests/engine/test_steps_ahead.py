"""An engine whose host runs one step ahead of the results gives what one that waits for each step gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shoal_api.options import ModelOptions
from shoal_engine.engine import Engine
from shoal_engine.messages import Output, Submit
from shoal_engine.sampling_params import SamplingParams
from tests.builders import greedy, prompts, save_tiny

NEW_TOKENS = 24
GREEDY = {"temperature": 0.0, "max_tokens": NEW_TOKENS, "ignore_eos": True}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]], list[list[int]]]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    model = save_tiny("qwen3", folder)
    texts = prompts(12, 199, low=3, high=60)
    return folder, texts, [greedy(model, text, NEW_TOKENS) for text in texts]


def load(folder: Path, steps_ahead: int, **options: Any) -> Engine:
    given = ModelOptions(
        model=str(folder), dtype="float32", num_threads=1, **{"max_model_len": 128, **options}
    )
    real = Engine.load(given)
    return Engine(
        real.runner, real.scheduler, real.sampler, real.config, real.model_path, real.ready, steps_ahead
    )


def drive(engine: Engine, joining: list[Submit]) -> dict[str, list[Output]]:
    """One request joins every second step."""
    outputs: dict[str, list[Output]] = {}
    waiting = list(joining)
    for step in range(4000):
        if waiting and step % 2 == 0:
            engine.add(waiting.pop(0))
        if not waiting and not engine.has_work:
            return outputs
        for output in engine.step():
            outputs.setdefault(output.id, []).append(output)
        engine.scheduler.check_integrity()
    raise AssertionError("the engine never became idle")


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def tight_cache_bytes() -> int:
    return 12 * 16 * 2 * 3 * 2 * 32 * 4  # twelve blocks: not enough for all requests at once


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 9, "max_num_seqs": 9},
        {"enable_prefix_caching": False},
        {"kv_cache_memory_bytes": tight_cache_bytes()},
    ],
    ids=["plain", "small steps", "no prefix cache", "preempted"],
)
def test_greedy_tokens_are_those_of_transformers(tiny: Any, options: dict[str, Any]) -> None:
    folder, texts, expected = tiny
    engine = load(folder, 1, **options)
    submits = [Submit(f"r{i}", text, SamplingParams(**GREEDY)) for i, text in enumerate(texts)]
    outputs = drive(engine, submits)
    assert [tokens(outputs[f"r{i}"]) for i in range(len(texts))] == expected
    assert (engine.stats().num_preemptions > 0) == ("kv_cache_memory_bytes" in options)
    assert engine.scheduler.pool.usage == 0.0


def test_what_another_engine_has_begun_ends_as_transformers_would_end_it(tiny: Any) -> None:
    folder, texts, expected = tiny
    engine = load(folder, 1, max_num_batched_tokens=13)
    cuts = [2 * i + 1 for i in range(len(texts))]
    params = SamplingParams(**GREEDY)
    joining = [
        Submit(str(i), text, params, output_token_ids=expected[i][:cut])
        for i, (text, cut) in enumerate(zip(texts, cuts, strict=True))
    ]
    outputs = drive(engine, joining)
    for i, cut in enumerate(cuts):
        rest = outputs[str(i)]
        assert tokens(rest) == expected[i][cut:]
        assert [output.num_cached_tokens is not None for output in rest] == [True, *[False] * (len(rest) - 1)]


@pytest.mark.parametrize("cache_bytes", [None, tight_cache_bytes()], ids=["roomy", "preempted"])
def test_draws_penalties_and_limits_do_not_see_that_the_host_is_ahead(
    tiny: Any, cache_bytes: int | None
) -> None:
    folder, texts, _ = tiny
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.9, "seed": 1},
        {"temperature": 1.1, "seed": 2, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
        {"temperature": 0.8, "seed": 3, "top_k": 9, "top_p": 0.9},
        {"temperature": 1.0, "seed": 4, "min_tokens": 7, "stop_token_ids": list(range(60))},
        {"temperature": 0.7, "seed": 5, "logprobs": 2},
        {"temperature": 0.0, "prompt_logprobs": 1},
    ]
    submits = [
        Submit(f"r{i}", text, SamplingParams(max_tokens=NEW_TOKENS, **kinds[i % len(kinds)]))
        for i, text in enumerate(texts)
    ]
    options = {} if cache_bytes is None else {"kv_cache_memory_bytes": cache_bytes}
    waits, ahead = (drive(load(folder, steps, **options), submits) for steps in (0, 1))
    for submit in submits:
        one, other = waits[submit.id], ahead[submit.id]
        assert tokens(one) == tokens(other)
        assert one[-1].finish_reason == other[-1].finish_reason
        assert one[-1].stop_reason == other[-1].stop_reason


def test_an_abort_between_two_steps_leaves_the_others_alone(tiny: Any) -> None:
    folder, texts, expected = tiny
    engine = load(folder, 1)
    for i, text in enumerate(texts[:4]):
        engine.add(Submit(f"r{i}", text, SamplingParams(**GREEDY)))
    got: dict[str, list[int]] = {}
    for step in range(200):
        if step == 6:
            engine.abort(["r1", "r3"])
            engine.add(Submit("late", texts[4], SamplingParams(**GREEDY)))
        for output in engine.step():
            got.setdefault(output.id, []).extend(output.token_ids)
        if not engine.has_work:
            break
    assert got["r0"] == expected[0]
    assert got["r2"] == expected[2]
    assert got["late"] == expected[4]
    assert len(got["r1"]) < NEW_TOKENS


class FailsToLaunch:
    """A runner that refuses some launches, as one does that is out of memory."""

    def __init__(self, runner: Any, broken: set[int]) -> None:
        self._runner = runner
        self._broken = broken
        self._launches = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, plan: Any, asked: Any) -> Any:
        self._launches += 1
        if self._launches in self._broken:
            raise MemoryError("no room")
        return self._runner.run(plan, asked)


class Unreadable:
    """The results of some steps cannot be read, while the step behind them is under way."""

    def __init__(self, sampler: Any, broken: set[int]) -> None:
        self._sampler = sampler
        self._broken = broken
        self._samples = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def sample(self, logits: torch.Tensor, request_ids: list[str]) -> Any:
        self._samples += 1
        sampled = self._sampler.sample(logits, request_ids)
        return Lost(sampled) if self._samples in self._broken else sampled


class Lost:
    def __init__(self, sampled: Any) -> None:
        self.token_ids = sampled.token_ids

    def on_host(self) -> Any:
        raise RuntimeError("a passing fault")


@pytest.mark.parametrize("cache_bytes", [None, tight_cache_bytes()], ids=["roomy", "preempted"])
def test_a_step_that_cannot_be_read_costs_nobody_a_token(tiny: Any, cache_bytes: int | None) -> None:
    folder, texts, expected = tiny
    options = {} if cache_bytes is None else {"kv_cache_memory_bytes": cache_bytes}
    real = load(folder, 1, **options)
    sampler: Any = Unreadable(real.sampler, {4, 11, 25, 40})
    engine = Engine(
        real.runner, real.scheduler, sampler, real.config, real.model_path, real.ready, steps_ahead=1
    )
    outputs = drive(engine, [Submit(f"r{i}", t, SamplingParams(**GREEDY)) for i, t in enumerate(texts)])
    assert [tokens(outputs[f"r{i}"]) for i in range(len(texts))] == expected


def test_a_launch_that_fails_while_a_step_is_under_way_costs_nobody_a_token(tiny: Any) -> None:
    folder, texts, expected = tiny
    real = load(folder, 1)
    runner: Any = FailsToLaunch(real.runner, {3, 8, 20})
    engine = Engine(
        runner, real.scheduler, real.sampler, real.config, real.model_path, real.ready, steps_ahead=1
    )
    outputs = drive(engine, [Submit(f"r{i}", t, SamplingParams(**GREEDY)) for i, t in enumerate(texts)])
    assert [tokens(outputs[f"r{i}"]) for i in range(len(texts))] == expected
