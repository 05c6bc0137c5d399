"""Logprobs against log_softmax: values, ranks, order of equals, chunks, and what they are taken from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from shoal_engine.errors import EngineError
from shoal_engine.logprobs import MIN_LOGPROB, prompt_logprobs, ranked_logprobs
from shoal_engine.messages import Logprob, TokenLogprobs
from shoal_engine.sampler import Sampler
from shoal_engine.sampling_params import MAX_LOGPROBS, SamplingParams
from shoal_engine.working_set import rows_at_a_time

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def logits(rows: int, vocab: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def assert_is_log_softmax(message: TokenLogprobs, row: Tensor, token_id: int, num_top: int) -> None:
    wanted = row.double().log_softmax(0)
    assert message.chosen.token_id == token_id
    assert len(message.top) == num_top
    ids = [one.token_id for one in message.top]
    assert row[ids].tolist() == row.sort(descending=True).values[:num_top].tolist()
    assert ids == sorted(set(ids), key=lambda one: (-float(row[one]), one)), (
        "equals stand in order of token id"
    )
    for one in [message.chosen, *message.top]:
        assert one.logprob == pytest.approx(float(wanted[one.token_id]), abs=2e-5)
        assert one.rank == 1 + int((row > row[one.token_id]).sum())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [25, 199, 20_011])
def test_logprobs_and_ranks_are_those_of_log_softmax(vocab: int, dtype: torch.dtype, device: str) -> None:
    x = logits(40, vocab).to(dtype)
    token_ids = torch.randint(vocab, (40,), generator=torch.Generator().manual_seed(1))
    token_ids[0] = x[0].argmax()
    for num_top in (0, 1, MAX_LOGPROBS):
        messages = prompt_logprobs(x.to(device), token_ids.to(device), num_top)
        for message, row, token_id in zip(messages, x, token_ids.tolist(), strict=True):
            assert_is_log_softmax(message, row, token_id, num_top)


def test_a_vocabulary_smaller_than_what_is_asked_for_gives_all_of_it() -> None:
    (message,) = prompt_logprobs(torch.tensor([[1.0, 3.0, 3.0]]), torch.tensor([2]), MAX_LOGPROBS)
    assert [(one.token_id, one.rank) for one in message.top] == [(1, 1), (2, 1), (0, 3)]
    assert message.chosen.rank == 1


def test_an_excluded_token_has_the_lowest_logprob_that_json_can_say() -> None:
    (message,) = prompt_logprobs(torch.tensor([[0.0, -math.inf, 0.0]]), torch.tensor([1]), 3)
    assert message.chosen == Logprob(1, MIN_LOGPROB, 3)


def test_rows_beyond_one_chunk_get_the_same_logprobs() -> None:
    vocab = 2**19
    rows = 2 * rows_at_a_time(vocab, torch.device("cpu")) + 1
    x = logits(1, vocab).expand(rows, -1)
    messages = ranked_logprobs(x, torch.arange(rows)).messages([1] * rows)
    assert len(messages) == rows
    assert all(message is not None and message.top == messages[0].top for message in messages)  # type: ignore[union-attr]
    assert [message.chosen.token_id for message in messages if message] == list(range(rows))


def test_prompt_logprobs_of_slices_join_to_those_of_the_whole() -> None:
    x, next_ids = logits(50, 300), torch.arange(50)
    whole = prompt_logprobs(x, next_ids, 3)
    slices = [
        prompt_logprobs(x[start : start + 7], next_ids[start : start + 7], 3) for start in range(0, 50, 7)
    ]
    assert [message for part in slices for message in part] == whole
    assert prompt_logprobs(x[:0], next_ids[:0], 3) == []


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_prompt_logprobs_of_a_bad_row_are_an_error(poison: float) -> None:
    x = logits(3, 100)
    x[1, 50] = poison
    with pytest.raises(EngineError) as raised:
        prompt_logprobs(x, torch.tensor([1, 2, 3]), 2)
    assert raised.value.code == "logits_not_finite"


def test_sampled_logprobs_come_from_the_raw_logits_of_rows_that_ask() -> None:
    x = logits(3, 500)
    sampler = Sampler(500, torch.device("cpu"))
    wishes = [
        SamplingParams(temperature=0.1, seed=1, logit_bias={7: 100.0}, logprobs=4),
        SamplingParams(temperature=0.0),
        SamplingParams(top_k=2, seed=3, repetition_penalty=3.0, logprobs=0),
    ]
    for request_id, wish in zip("abc", wishes, strict=True):
        sampler.add(request_id, wish, [1, 2])
    for ids, order in (("abc", [0, 1, 2]), ("cab", [2, 0, 1])):
        sampled = sampler.sample(x[order], list(ids))
        messages = sampled.logprobs()
        assert messages is not None
        for position, row in enumerate(order):
            message, asked = messages[position], wishes[row].logprobs
            assert (message is None) == (asked is None)
            if message is not None and asked is not None:
                assert_is_log_softmax(message, x[row], int(sampled.token_ids[position]), asked)
    assert messages[1] is not None
    assert messages[1].chosen.token_id == 7
