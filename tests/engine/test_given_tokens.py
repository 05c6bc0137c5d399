"""A request that comes with tokens another engine has generated goes on as that engine would have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoal_api.options import ModelOptions
from shoal_engine.engine import Engine
from shoal_engine.errors import InvalidRequest, KVCacheExhausted
from shoal_engine.messages import Output, Submit, TokenLogprobs
from shoal_engine.sampling_params import SamplingParams
from tests.engine.test_deterministic import CONFIG, TOKEN_BYTES

PROMPT = [7, 430, 12, 999, 5, 61, 7, 430, 12, 88, 3, 44, 51, 600, 17, 2, 9, 10, 11, 350]
NEW_TOKENS = 40
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0, "logprobs": 2},
    "drawn": {"seed": 4, "logprobs": 0},
    "truncated": {"seed": 5, "temperature": 0.9, "top_p": 0.9, "top_k": 40},
    "penalised": {
        "temperature": 0.0,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.8,
        "frequency_penalty": 0.4,
    },
    "biased": {"seed": 6, "temperature": 1.5, "logit_bias": {7: 8.0, 8: -100.0}},
    "at least 20": {
        "seed": 7,
        "temperature": 1.5,
        "min_tokens": 20,
        "stop_token_ids": tuple(range(0, 1000, 9)),
    },
    "stopped": {"seed": 8, "temperature": 1.5, "stop_token_ids": tuple(range(0, 1000, 25))},
}


def load(**options: Any) -> Engine:
    return Engine.load(
        ModelOptions(
            model=options.pop("model"),
            load_format="dummy",
            dtype="float32",
            num_threads=1,
            deterministic=True,
            **{"kv_cache_memory_bytes": 4096 * 4 * TOKEN_BYTES, **options},
        )
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load(model=str(folder))


def submit(name: str, given: list[int], **params: Any) -> Submit:
    fields = {"max_tokens": NEW_TOKENS, "ignore_eos": True, **params}
    return Submit(name, PROMPT, SamplingParams(**fields), output_token_ids=given)


def drive(engine: Engine, *submits: Submit) -> dict[str, list[Output]]:
    outputs: dict[str, list[Output]] = {each.id: [] for each in submits}
    for each in submits:
        engine.add(each)
    while engine.has_work:
        for output in engine.step():
            outputs[output.id].append(output)
    return outputs


def told(outputs: list[Output]) -> tuple[list[int], list[TokenLogprobs], str | None, int | None]:
    tokens = [token for output in outputs for token in output.token_ids]
    logprobs = [entry for output in outputs for entry in output.logprobs or []]
    return tokens, logprobs, outputs[-1].finish_reason, outputs[-1].stop_reason


@pytest.mark.parametrize("kind", KINDS)
def test_wherever_a_request_is_cut_its_rest_is_the_same(engine: Engine, kind: str) -> None:
    params = KINDS[kind]
    tokens, logprobs, *end = told(drive(engine, submit("whole", [], **params))["whole"])
    assert len(tokens) > 4
    if kind == "at least 20":
        assert 20 < len(tokens) < NEW_TOKENS
    cuts = range(1, len(tokens))
    rests = drive(engine, *(submit(str(cut), tokens[:cut], **params) for cut in cuts))
    for cut in cuts:
        seen = logprobs and logprobs[cut:]
        assert told(rests[str(cut)]) == (tokens[cut:], seen, *end), cut


def test_a_long_one_goes_on_in_small_chunks_and_after_preemption(folder: Path, engine: Engine) -> None:
    params = KINDS["penalised"]
    tokens, *_ = told(drive(engine, submit("whole", [], **params))["whole"])
    tight = load(
        model=str(folder),
        max_num_batched_tokens=9,
        max_num_seqs=8,
        max_model_len=96,
        kv_cache_memory_bytes=120 * 4 * TOKEN_BYTES,
        enable_prefix_caching=False,
    )
    cuts = (3, 11, 20, 27)
    rests = drive(tight, *(submit(str(cut), tokens[:cut], **params) for cut in cuts))
    assert {cut: told(rests[str(cut)])[0] for cut in cuts} == {cut: tokens[cut:] for cut in cuts}
    assert tight.stats().num_preemptions > 0


def test_its_generated_tokens_fill_the_cache_and_count_neither_as_prompt_nor_twice(folder: Path) -> None:
    engine = load(model=str(folder))
    tokens, *_ = told(drive(engine, submit("whole", [], temperature=0.0))["whole"])
    before = engine.stats()
    first = drive(engine, submit("rest", tokens[:30], temperature=0.0))["rest"][0]
    after = engine.stats()
    assert first.num_cached_tokens == len(PROMPT), "all of its prompt, and not the answer behind it"
    assert after.generation_tokens - before.generation_tokens == NEW_TOKENS - 30
    for name in ("prompt_tokens", "prefix_cache_queries", "prefix_cache_hits"):
        assert getattr(after, name) == getattr(before, name), name

    other = load(model=str(folder))
    before = other.stats()
    drive(other, submit("rest", tokens[:30], temperature=0.0))
    assert other.stats().prompt_tokens == before.prompt_tokens
    assert other.stats().prefix_cache_queries == before.prefix_cache_queries
    again = drive(other, submit("again", [], temperature=0.0))["again"]
    assert told(again)[0] == tokens
    assert again[0].num_cached_tokens == len(PROMPT) // 16 * 16
    longer = Submit("longer", PROMPT + tokens, SamplingParams(max_tokens=1))
    cached = drive(other, longer)["longer"][0].num_cached_tokens
    assert cached == (len(PROMPT) + NEW_TOKENS - 1) // 16 * 16, "what it was given is in the cache as well"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ([1] * NEW_TOKENS, InvalidRequest),  # nothing is left to generate
        ([1000], InvalidRequest),
        ([-1], InvalidRequest),
    ],
)
def test_what_cannot_go_on_is_refused_at_the_door(
    engine: Engine, given: list[int], error: type[Exception]
) -> None:
    with pytest.raises(error):
        engine.add(submit("wrong", given))
    assert not engine.has_work


def test_one_that_has_outgrown_the_cache_is_refused(folder: Path) -> None:
    small = load(model=str(folder), max_model_len=64, kv_cache_memory_bytes=80 * 4 * TOKEN_BYTES)
    capacity = small.scheduler.pool.capacity * 16
    assert capacity >= 64
    with pytest.raises((KVCacheExhausted, InvalidRequest)):
        small.add(Submit("long", PROMPT, SamplingParams(max_tokens=None), output_token_ids=[5] * 64))
