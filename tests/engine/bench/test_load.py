"""What a benchmark sends: lengths, shared prefixes, arrivals."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_engine.bench.load import FIRST_ID, Load, arrivals_s, requests_of

LOADS = st.builds(
    Load,
    num_prompts=st.integers(1, 8),
    input_len=st.integers(1, 40),
    output_len=st.integers(1, 40),
    prefix_len=st.integers(0, 20),
    range_ratio=st.floats(0.0, 0.9),
    seed=st.integers(0, 3),
)


@given(LOADS, st.integers(2, 1000))
def test_ids_are_of_the_vocabulary_and_lengths_within_their_range(load: Load, vocab_size: int) -> None:
    requests = requests_of(load, vocab_size)
    assert len(requests) == load.num_prompts
    for request in requests:
        assert all(0 <= token < vocab_size for token in request.prompt)
        for length, mean in (
            (len(request.prompt) - load.prefix_len, load.input_len),
            (request.output_tokens, load.output_len),
        ):
            assert length >= 1
            assert mean * (1 - load.range_ratio) - 1 <= length <= max(1, mean * (1 + load.range_ratio) + 1)


def test_prompts_share_their_prefix_and_nothing_behind_it() -> None:
    requests = requests_of(Load(num_prompts=20, input_len=8, output_len=1, prefix_len=16), 50_000)
    heads = {tuple(request.prompt[:16]) for request in requests}
    tails = {tuple(request.prompt[16:]) for request in requests}
    assert (len(heads), len(tails)) == (1, 20)
    assert min(min(request.prompt) for request in requests) >= FIRST_ID


def test_a_load_is_the_same_again_and_another_with_another_seed() -> None:
    load = Load(num_prompts=3, input_len=9, output_len=9, range_ratio=0.5)
    assert requests_of(load, 1000) == requests_of(load, 1000)
    assert requests_of(load, 1000) != requests_of(replace(load, seed=1), 1000)


def test_without_a_rate_all_come_at_once() -> None:
    assert list(arrivals_s(Load(num_prompts=3, input_len=1, output_len=1), None)) == [0.0] * 3


def test_at_a_rate_the_pauses_are_those_of_poisson() -> None:
    at_s = list(arrivals_s(Load(num_prompts=4001, input_len=1, output_len=1), 20.0))
    pauses = [later - sooner for sooner, later in itertools.pairwise(at_s)]
    mean = sum(pauses) / len(pauses)
    assert mean == pytest.approx(1 / 20, rel=0.1)
    variance = sum((pause - mean) ** 2 for pause in pauses) / len(pauses)
    assert variance**0.5 == pytest.approx(mean, rel=0.1)  # of an exponential distribution they are equal
