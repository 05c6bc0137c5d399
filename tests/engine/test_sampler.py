"""The sampler against a plain implementation: distributions, order of edits, reproducibility, isolation of bad rows."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from shoal_engine.errors import InvalidRequest
from shoal_engine.sampler import Sampler
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.sampling_rows import NO_SLOT, SamplingRows

CPU = torch.device("cpu")
DEVICES = [CPU] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
EOS = 2


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": None, **fields})


def random_logits(rows: int, vocab: int, seed: int = 0, spread: float = 2.5) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def sample_once(logits: Tensor, wishes: list[SamplingParams], prompt: list[int] | None = None) -> list[int]:
    sampler = Sampler(logits.shape[1], logits.device, seed=0)
    ids = [str(row) for row in range(len(wishes))]
    for request_id, wish in zip(ids, wishes, strict=True):
        sampler.add(request_id, wish, prompt or [1], eos_ids=[EOS])
    sampled = sampler.sample(logits, ids)
    assert sampled.ok.all()
    return sampled.token_ids.tolist()


def plain_probabilities(
    logits: NDArray[np.float64], wish: SamplingParams, prompt: list[int], output: list[int]
) -> NDArray[np.float64]:
    """One row, one step after another, in float64: what the sampler's docstring promises."""
    x = logits.copy()
    if wish.allowed_token_ids is not None:
        x[[token for token in range(len(x)) if token not in wish.allowed_token_ids]] = -np.inf
    if len(output) < wish.min_tokens:
        x[[EOS, *wish.stop_token_ids]] = -np.inf
    for token, bias in (wish.logit_bias or {}).items():
        x[token] += bias
    counts = Counter(output)
    for token in set(prompt) | set(output):
        x[token] = x[token] / wish.repetition_penalty if x[token] > 0 else x[token] * wish.repetition_penalty
    for token, count in counts.items():
        x[token] -= wish.frequency_penalty * count + wish.presence_penalty
    if wish.temperature == 0.0:
        return np.eye(len(x))[x.argmax()]
    weights = np.exp((x - x.max()) / wish.temperature)
    weights[weights < wish.min_p] = 0.0
    if wish.top_k > 0:
        weights[weights < np.sort(weights)[-min(wish.top_k, len(x))]] = 0.0
    weights /= weights.sum()
    if wish.top_p < 1.0:
        order = np.argsort(-weights)
        needed = int((np.cumsum(weights[order]) < wish.top_p).sum()) + 1
        weights[order[needed:]] = 0.0
    return weights / weights.sum()


def assert_drawn_from(tokens: list[int], probabilities: NDArray[np.float64]) -> None:
    """Chi-square with the rare tokens pooled; the bound is its 0.9999 quantile (Wilson and Hilferty 1931)."""
    counts = np.bincount(tokens, minlength=len(probabilities))
    assert not counts[probabilities == 0].any(), "a token that was cut away was drawn"
    expected = probabilities * len(tokens)
    common = expected >= 8
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    freedom = len(wanted) - 1
    if freedom == 0:
        return
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    bound = freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < bound, f"chi-square {statistic:.1f} of {freedom} degrees, bound {bound:.1f}"


DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cool": {"temperature": 0.3},
    "hot": {"temperature": 1.7},
    "top_p": {"top_p": 0.9},
    "cool top_p": {"temperature": 0.6, "top_p": 0.5},
    "top_k": {"top_k": 7},
    "min_p": {"min_p": 0.08},
    "all cuts": {"temperature": 1.3, "top_p": 0.8, "top_k": 30, "min_p": 0.02},
    "top_k above the vocabulary": {"top_k": 10**9},
    "bias": {"logit_bias": {3: 4.0, 5: -100.0, 8: 1.5}},
    "allowed": {"allowed_token_ids": (4, 9, 11, 20), "top_p": 0.95},
    "min_tokens": {"min_tokens": 50, "stop_token_ids": (7, 9)},
    "penalties": {"repetition_penalty": 1.7, "frequency_penalty": 0.6, "presence_penalty": -0.9},
    "everything": {
        "temperature": 0.9,
        "top_p": 0.97,
        "top_k": 60,
        "min_p": 0.001,
        "min_tokens": 50,
        "logit_bias": {EOS: 9.0, 30: 3.0},
        "repetition_penalty": 0.7,
        "frequency_penalty": 0.4,
        "presence_penalty": 0.3,
        "allowed_token_ids": tuple(range(0, 151, 2)),
    },
}


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_tokens_follow_the_plain_implementation(name: str, device: torch.device) -> None:
    draws, vocab = 8000, 151  # more rows than are worked on at a time
    row = random_logits(1, vocab, seed=len(name))
    prompt, output = [3, 9, 9, 17, 60], [9, 9, 30, 41]
    sampler = Sampler(vocab, device)
    ids = [f"{n}" for n in range(draws)]
    for seed, request_id in enumerate(ids):
        sampler.add(request_id, params(seed=seed, **DISTRIBUTIONS[name]), prompt, output, [EOS])
    sampled = sampler.sample(row.expand(draws, -1).to(device), ids)
    assert sampled.ok.all()
    wanted = plain_probabilities(row[0].double().numpy(), params(**DISTRIBUTIONS[name]), prompt, output)
    assert_drawn_from(sampled.token_ids.tolist(), wanted)


@pytest.mark.parametrize("fields", [{}, {"top_p": 0.9, "temperature": 0.8}], ids=["plain", "top_p"])
def test_the_positions_of_one_seeded_request_are_independent_draws(fields: dict[str, Any]) -> None:
    row = random_logits(1, 40, seed=5)
    sampler = Sampler(40, CPU)
    sampler.add("a", params(seed=11, **fields), [1])
    tokens = [int(sampler.sample(row, ["a"]).token_ids) for _ in range(4000)]
    wanted = plain_probabilities(row[0].double().numpy(), params(**fields), [1], [])
    assert_drawn_from(tokens, wanted)
    pairs = [first * 40 + second for first, second in zip(tokens[::2], tokens[1::2], strict=True)]
    assert_drawn_from(pairs, np.outer(wanted, wanted).ravel())


class Model:
    """Logits that depend on the request and on how much it has produced, as a model's do."""

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def row(self, request_id: str, position: int) -> Tensor:
        return random_logits(1, self.vocab, seed=zlib.crc32(f"{request_id} {position}".encode()))

    def rows(self, where: dict[str, list[int]]) -> Tensor:
        return torch.cat([self.row(request_id, len(output)) for request_id, output in where.items()])


REPRODUCED: dict[str, dict[str, Any]] = {
    "plain": {},
    "top_p": {"top_p": 0.9},
    "flat top_p": {"top_p": 0.999, "temperature": 3.0},
    "top_k": {"top_k": 40, "temperature": 0.8},
    "min_p": {"min_p": 0.05},
    "penalties": {"repetition_penalty": 1.4, "frequency_penalty": 0.5, "top_k": 20},
    "min_tokens": {"min_tokens": 6, "logit_bias": {EOS: 20.0}},
}


def _alone(model: Model, wish: SamplingParams, steps: int) -> list[int]:
    sampler = Sampler(model.vocab, CPU, seed=1)
    sampler.add("mine0", wish, [5, 6], eos_ids=[EOS])
    output: list[int] = []
    for _ in range(steps):
        output += sampler.sample(model.row("mine0", len(output)), ["mine0"]).token_ids.tolist()
    return output


@pytest.mark.parametrize("vocab", [199, 16_500])
@pytest.mark.parametrize("name", REPRODUCED)
def test_a_seeded_request_is_the_same_in_any_batch_and_after_preemption(name: str, vocab: int) -> None:
    model, steps, rng = Model(vocab), 12, np.random.default_rng(3)
    wish = params(seed=77, **REPRODUCED[name])
    sampler = Sampler(vocab, CPU, seed=2)
    outputs: dict[str, list[int]] = {"mine0": []}
    sampler.add("mine0", wish, [5, 6], eos_ids=[EOS])
    crowd = [*REPRODUCED.values(), {"temperature": 0.0}, {"top_k": 300}]
    while len(outputs["mine0"]) < steps:
        joining = f"other{rng.integers(10)}"
        if joining not in outputs:
            outputs[joining] = []
            sampler.add(joining, params(**crowd[rng.integers(len(crowd))]), [1, 2, 3], eos_ids=[EOS])
        elif rng.integers(2):
            del outputs[joining]
            sampler.remove(joining)
        if rng.integers(4) == 0:  # preempted: it comes back with what it had, and a batch goes by without it
            sampler.remove("mine0")
            sampler.add("mine0", wish, [5, 6], outputs["mine0"], [EOS])
        elif rng.integers(4) == 0:  # or it keeps its state meanwhile
            pass
        running = [one for one in outputs if one != "mine0" or rng.integers(3)]
        rng.shuffle(running)
        if not running:
            continue
        logits = model.rows({one: outputs[one] for one in running})
        for one, token in zip(running, sampler.sample(logits, running).token_ids.tolist(), strict=True):
            outputs[one].append(token)
    assert outputs["mine0"] == _alone(model, wish, steps)


def test_unseeded_requests_differ_and_the_engine_seed_repeats_the_run() -> None:
    def run(seed: int | None) -> list[list[int]]:
        sampler = Sampler(5000, CPU, seed)
        ids = ["a", "b", "c"]
        for request_id in ids:
            sampler.add(request_id, params(temperature=2.0), [1])
        row = random_logits(1, 5000).expand(3, -1)
        return [sampler.sample(row, ids).token_ids.tolist() for _ in range(8)]

    first = run(7)
    assert first == run(7)
    assert first != run(8)
    assert run(None) != run(None)
    columns = list(zip(*first, strict=True))
    assert len(set(columns)) == 3


@pytest.mark.parametrize(
    "fields",
    [{"temperature": 1.5}, {"temperature": 0.0, "frequency_penalty": 0.5}],
    ids=["drawn", "penalised"],
)
def test_a_request_that_is_added_again_keeps_its_drawn_seed_and_only_the_tokens_that_count(
    fields: dict[str, Any],
) -> None:
    row = random_logits(1, 30)
    runs = []
    for again in (False, True):
        sampler = Sampler(30, CPU, seed=4)
        sampler.add("a", params(**fields), [1])
        output = sampler.sample(row, ["a"]).token_ids.tolist()
        if again:
            for _ in range(3):  # steps whose results are thrown away
                sampler.sample(row, ["a"])
            sampler.add("a", params(**fields), [1], output)
        runs.append(output + [int(sampler.sample(row, ["a"]).token_ids) for _ in range(8)])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("vocab", [130, 17_001])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf], ids=str)
def test_a_bad_row_is_reported_and_its_neighbours_are_byte_identical(
    poison: float, vocab: int, device: torch.device
) -> None:
    wishes = [
        params(seed=1, logprobs=2, **fields)
        for fields in DISTRIBUTIONS.values()
        if not fields.get("allowed_token_ids")
    ]
    wishes += [params(temperature=0.0), params(temperature=0.0, repetition_penalty=1.2, logprobs=4)]
    wishes = wishes + wishes
    bad = len(wishes) // 2

    def run(poisoned: bool) -> tuple[list[Any], ...]:
        sampler = Sampler(vocab, device, seed=0)
        ids = [str(row) for row in range(len(wishes))]
        for request_id, wish in zip(ids, wishes, strict=True):
            sampler.add(request_id, wish, [1, 2], eos_ids=[EOS])
        tokens, oks, logprobs = [], [], []
        for step in range(3):
            logits = random_logits(len(wishes), vocab, seed=step)
            if poisoned:  # every way of choosing has a bad row and a good one
                excluded = (
                    slice(None) if poison == -math.inf else vocab - 1 - step
                )  # of the others one is enough
                logits[bad:, excluded] = poison
            sampled = sampler.sample(logits.to(device), ids)
            tokens += sampled.token_ids[:bad].tolist()
            oks.append(sampled.ok.tolist())
            logprobs.append(sampled.logprobs())
        return tokens, oks, logprobs

    tokens, oks, logprobs = run(poisoned=False)
    tokens_beside, oks_beside, logprobs_beside = run(poisoned=True)
    assert all(all(ok) for ok in oks)
    assert all(ok == [True] * bad + [False] * bad for ok in oks_beside)
    assert tokens_beside == tokens
    assert [step[:bad] for step in logprobs_beside] == [step[:bad] for step in logprobs]
    assert all(message is None for step in logprobs_beside for message in step[bad:])


def test_nan_is_found_where_allowed_ids_hide_it() -> None:
    logits = random_logits(1, 50)
    logits[0, 40] = math.nan
    sampler = Sampler(50, CPU)
    sampler.add("a", params(allowed_token_ids=(1, 2)), [1])
    assert not sampler.sample(logits, ["a"]).ok.item()


def test_a_row_whose_allowed_tokens_the_model_excludes_is_not_ok() -> None:
    logits = random_logits(2, 50)
    logits[0, [1, 2]] = -math.inf
    sampler = Sampler(50, CPU)
    for request_id in "ab":
        sampler.add(request_id, params(allowed_token_ids=(1, 2)), [1])
    assert sampler.sample(logits, ["a", "b"]).ok.tolist() == [False, True]


rows_of_logits = st.lists(st.floats(-30, 30, width=32), min_size=12, max_size=12)
any_params = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 1e-12, 0.4, 1.0, 50.0]),
        "top_p": st.sampled_from([1e-9, 0.3, 0.9, 1.0]),
        "top_k": st.sampled_from([-1, 0, 1, 3, 11, 12, 13]),
        "min_p": st.sampled_from([0.0, 0.1, 1.0]),
        "repetition_penalty": st.sampled_from([0.5, 1.0, 2.0]),
        "frequency_penalty": st.sampled_from([-2.0, 0.0, 2.0]),
        "presence_penalty": st.sampled_from([-2.0, 0.0, 2.0]),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "logprobs": st.integers(0, 20),
    },
)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@settings(max_examples=200, deadline=None)
@given(rows_of_logits, any_params, dtypes)
def test_top_k_1_equals_greedy(row: list[float], fields: dict[str, Any], dtype: torch.dtype) -> None:
    logits = torch.tensor([row, row], dtype=dtype)
    first, second = sample_once(
        logits, [params(**{**fields, "top_k": 1}), params(**{**fields, "temperature": 0.0})], prompt=[3, 4]
    )
    assert first == second


@settings(max_examples=200, deadline=None)
@given(rows_of_logits, any_params, dtypes, st.integers(1, 5))
def test_min_tokens_holds_back_eos_and_stop_tokens_until_it_is_reached(
    row: list[float], fields: dict[str, Any], dtype: torch.dtype, min_tokens: int
) -> None:
    logits = torch.tensor([row], dtype=dtype)
    logits[0, EOS] += 60.0
    sampler = Sampler(12, CPU, seed=0)
    sampler.add(
        "a",
        params(**fields, min_tokens=min_tokens, stop_token_ids=(7,), logit_bias={7: 100.0}),
        [1],
        eos_ids=[EOS],
    )
    tokens = [int(sampler.sample(logits, ["a"]).token_ids) for _ in range(min_tokens)]
    assert not {EOS, 7} & set(tokens)


def test_eos_comes_with_the_first_token_after_min_tokens() -> None:
    logits = torch.zeros(1, 12)
    logits[0, EOS] = 50.0
    sampler = Sampler(12, CPU)
    sampler.add("a", params(temperature=0.0, min_tokens=3), [1], eos_ids=[EOS])
    tokens = [int(sampler.sample(logits, ["a"]).token_ids) for _ in range(4)]
    assert tokens.index(EOS) == 3


@settings(max_examples=200, deadline=None)
@given(rows_of_logits, any_params, st.integers(0, 11), st.sampled_from([-100.0, 100.0]))
def test_a_bias_of_100_decides(row: list[float], fields: dict[str, Any], token: int, bias: float) -> None:
    moderate = {name: value for name, value in fields.items() if "penalty" not in name and value != 50.0}
    logits = torch.tensor([row])
    drawn = sample_once(logits.expand(8, -1), [params(**{**moderate, "logit_bias": {token: bias}})] * 8)
    assert (set(drawn) == {token}) if bias > 0 else (token not in drawn)


@settings(max_examples=200, deadline=None)
@given(rows_of_logits, any_params, st.sets(st.integers(0, 11), min_size=1), dtypes)
def test_only_allowed_ids_are_drawn(
    row: list[float], fields: dict[str, Any], allowed: set[int], dtype: torch.dtype
) -> None:
    logits = torch.tensor([row], dtype=dtype).expand(8, -1)
    drawn = sample_once(logits, [params(**fields, allowed_token_ids=tuple(allowed))] * 8)
    assert set(drawn) <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_takes_the_first_of_equals_alone_and_in_a_mixed_batch(dtype: torch.dtype) -> None:
    logits = torch.zeros(2, 20_000, dtype=dtype)
    logits[:, [77, 5_000, 19_999]] = 3.0
    assert sample_once(logits, [params(temperature=0.0)] * 2) == [77, 77]
    assert sample_once(logits, [params(temperature=0.0), params(top_k=3)])[0] == 77


@pytest.mark.parametrize(("vocab", "longest_prompt"), [(90, 30), (2000, 900)])
def test_penalties_follow_the_plain_implementation_over_a_long_churning_run(
    vocab: int, longest_prompt: int
) -> None:
    rng = np.random.default_rng(1)
    sampler = Sampler(vocab, CPU)
    live: dict[str, tuple[SamplingParams, list[int], list[int]]] = {}
    for step in range(600):
        name = f"r{rng.integers(6)}"
        if name not in live or rng.integers(60) == 0:
            sampler.remove(name)
            wish = params(
                temperature=0.0,
                repetition_penalty=float(rng.uniform(0.6, 1.8)),
                frequency_penalty=float(rng.uniform(-0.3, 1.0)),
                presence_penalty=float(rng.uniform(-0.5, 1.0)),
            )
            live[name] = wish, rng.integers(0, vocab, rng.integers(1, longest_prompt)).tolist(), []
            sampler.add(name, wish, live[name][1])
        ids = list(live)
        logits = random_logits(len(ids), vocab, seed=step)
        for row, token in enumerate(sampler.sample(logits, ids).token_ids.tolist()):
            wish, prompt, output = live[ids[row]]
            assert token == plain_probabilities(logits[row].double().numpy(), wish, prompt, output).argmax()
            output.append(token)
    assert max(len(output) for _, _, output in live.values()) > 90


def test_logits_are_left_as_they_were() -> None:
    logits = random_logits(len(DISTRIBUTIONS), 151)
    before = logits.clone()
    sample_once(logits, [params(**fields) for fields in DISTRIBUTIONS.values()])
    assert torch.equal(logits, before)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "allowed out of range": ({"allowed_token_ids": (3, 50)}, "allowed_token_ids"),
    "allowed negative": ({"allowed_token_ids": (-1,)}, "allowed_token_ids"),
    "allowed beyond int64": ({"allowed_token_ids": (2**70,)}, "allowed_token_ids"),
    "nothing allowed": ({"allowed_token_ids": ()}, "allowed_token_ids"),
    "bias out of range": ({"logit_bias": {50: 1.0}}, "logit_bias"),
    "stop out of range": ({"stop_token_ids": (1_000_000,)}, "stop_token_ids"),
    "min_tokens leaves nothing": (
        {"allowed_token_ids": (EOS, 9), "stop_token_ids": (9,), "min_tokens": 1},
        "min_tokens",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_token_id_is_refused_before_it_joins_a_batch(name: str) -> None:
    fields, field = BAD[name]
    sampler = Sampler(50, CPU)
    sampler.add("good", params(temperature=0.0), [1])
    with pytest.raises(InvalidRequest) as refused:
        sampler.add("bad", params(**fields), [1], eos_ids=[EOS])
    assert refused.value.param == field
    logits = random_logits(1, 50)
    assert sampler.sample(logits, ["good"]).token_ids.tolist() == logits.argmax(1).tolist()


def test_a_prompt_token_out_of_range_is_refused_where_penalties_would_use_it() -> None:
    with pytest.raises(InvalidRequest, match="50"):
        Sampler(50, CPU).add("a", params(repetition_penalty=1.1), [3, 50])


def test_logits_of_the_wrong_shape_are_refused() -> None:
    sampler = Sampler(50, CPU)
    sampler.add("a", params(), [1])
    with pytest.raises(ValueError, match=r"\[1, 50\]"):
        sampler.sample(random_logits(2, 50), ["a"])
    with pytest.raises(ValueError, match="one row"):
        sampler.sample(random_logits(2, 50), ["a", "a"])


def test_rows_of_ended_requests_are_used_again() -> None:
    rows = SamplingRows(50, CPU, seed=0)
    for number in range(1000):
        rows.add(str(number), params(repetition_penalty=1.2), [1, 2], [], [EOS])
        _, gathered = rows.gather([str(number)])
        assert 0 <= gathered["slot"][0] < 4
        rows.remove(str(number - 3))
    assert len(rows.values) == 4
    assert len(rows.index) == 3


def test_a_penalised_request_that_waits_takes_no_room_on_the_device() -> None:
    rows = SamplingRows(50, CPU, seed=0)
    for number in range(100):
        rows.add(str(number), params(repetition_penalty=1.2), [1, 2], [], [EOS])
    assert (rows.values["slot"][list(rows.index.values())] == NO_SLOT).all()
    _, gathered = rows.gather(["7", "3"])
    assert sorted(gathered["slot"]) == [0, 1]


def test_an_empty_batch_gives_nothing() -> None:
    sampled = Sampler(50, CPU).sample(torch.zeros(0, 50), [])
    assert sampled.token_ids.shape == (0,)
    assert sampled.logprobs() is None
