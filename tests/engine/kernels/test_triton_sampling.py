"""Sampling kernels in Triton's interpreter. The oracle is what the CPU engine runs, `draws.py`: same seeds, same tokens."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from shoal_engine.draws import Truncation, draw, draw_truncated, greedy
from shoal_engine.kernels import triton_sampling
from shoal_engine.kernels.triton_columns import MANY_ROWS
from shoal_engine.kernels.triton_sampling import RowParameters, SamplingSpace, sample
from shoal_engine.noise import key_of, uniforms

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results and workspace start as nonsense, so that an element nobody wrote is seen."""
    torch.manual_seed(0)

    def full(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.full(size, math.nan if dtype.is_floating_point else 77, dtype=dtype, device=device)

    monkeypatch.setattr(torch, "empty", full)
    monkeypatch.setattr(triton_sampling, "_DEEP_BLOCK", 2048)


def parameters(
    count: int,
    vocab: int,
    temperature: float = 1.0,
    min_p: float = 0.0,
    top_k: int | None = None,
    top_p: float = math.inf,
    first_seed: int = 0,
) -> RowParameters:
    keys = np.array([key_of(first_seed + row) for row in range(count)], dtype=np.uint64).view(np.int64)
    return RowParameters(
        torch.full((count,), temperature),
        torch.full((count,), min_p),
        torch.full((count,), vocab if top_k is None else top_k, dtype=torch.int32),
        torch.full((count,), top_p, dtype=torch.float64),
        torch.from_numpy(keys.copy()),
        torch.arange(3, 3 + count),
    )


def joined(*parts: RowParameters) -> RowParameters:
    names = ("temperature", "min_p", "top_k", "top_p", "keys", "positions")
    return RowParameters(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def expected(logits: Tensor, rows: RowParameters) -> tuple[list[int], list[bool]]:
    """Row by row through `draws.py`."""
    token_ids, ok, vocab = [], [], logits.shape[1]
    for row in range(len(logits)):
        x = logits[row : row + 1].float()
        own = RowParameters(*(getattr(rows, name)[row : row + 1] for name in RowParameters.__slots__))
        number = uniforms(own.keys.numpy().view(np.uint64), own.positions.numpy())
        uniform = torch.from_numpy(number).unsqueeze(1)
        heat, k, p = own.temperature.unsqueeze(1), int(own.top_k), float(own.top_p)
        if float(own.temperature) == 0.0:
            found = greedy(x)
        elif k < vocab or p < math.inf or float(own.min_p) > 0:
            nucleus_only = slice(None) if k >= vocab and float(own.min_p) == 0.0 else None
            cut = Truncation(
                own.min_p.unsqueeze(1), own.top_k.long().clamp(max=vocab).unsqueeze(1),
                own.top_p.unsqueeze(1), nucleus_only, k, p < math.inf,
            )  # fmt: skip
            found = draw_truncated(x, heat, cut, uniform)
        else:
            found = draw(x, heat, uniform)
        token_ids.append(int(found[0]))
        ok.append(bool(found[1]))
    return token_ids, ok


def assert_same(logits: Tensor, rows: RowParameters) -> None:
    got, ok = sample(logits, rows, SamplingSpace(len(logits) + 1, logits.shape[1], CPU))
    want, want_ok = expected(logits, rows)
    assert ok.bool().tolist() == want_ok
    assert got.tolist() == want


def text_logits(count: int, vocab: int) -> Tensor:
    falling = -1.6 * torch.arange(1, vocab + 1).log()
    shuffled = torch.stack([falling[torch.randperm(vocab)] for _ in range(count)])
    return shuffled + 0.3 * torch.randn(count, vocab)


@pytest.mark.parametrize(
    ("vocab", "dtype"),
    [(5, torch.float32), (128, torch.float32), (300, torch.bfloat16), (530, torch.float32)],
)
def test_all_kinds_of_rows_in_one_batch(vocab: int, dtype: torch.dtype) -> None:
    rows = joined(
        parameters(2, vocab, temperature=0.0),
        parameters(4, vocab),
        parameters(2, vocab, temperature=0.6),
        parameters(3, vocab, top_k=4),
        parameters(3, vocab, temperature=1.5, top_p=0.8),
        parameters(2, vocab, min_p=0.05),
        parameters(3, vocab, temperature=0.7, top_k=20, top_p=0.9, min_p=0.01),
    )
    logits = text_logits(len(rows.keys), vocab).to(dtype)
    assert_same(logits, rows)


@pytest.mark.parametrize(
    "options",
    [{"top_p": 0.9}, {"top_k": 1200}, {"min_p": 1e-3}, {"top_k": 2000, "top_p": 0.97, "min_p": 1e-4}],
    ids=str,
)
def test_a_cut_below_the_candidates_is_exact(options: dict[str, float]) -> None:
    vocab = 9000
    rows = parameters(2, vocab, **options)  # type: ignore[arg-type]
    logits = 0.5 * torch.randn(2, vocab)
    space = SamplingSpace(2, vocab, CPU)
    got, _ = sample(logits, rows, space)
    assert space.deep.tolist() == [1, 1]
    assert got.tolist() == expected(logits, rows)[0]


def test_a_nucleus_of_text_needs_no_sweep() -> None:
    space = SamplingSpace(4, 20000, CPU)
    logits, rows = text_logits(4, 20000), parameters(4, 20000, temperature=0.7, top_p=0.9)
    got, _ = sample(logits, rows, space)
    assert not space.deep.any()
    assert got.tolist() == expected(logits, rows)[0]


def test_ties_with_the_last_token_kept_are_kept() -> None:
    logits = torch.tensor([3.0, 1.0, 2.0, 2.0, 2.0, -1.0] * 40).repeat(4, 1)
    assert_same(logits, parameters(4, logits.shape[1], top_k=50))
    assert_same(logits, parameters(4, logits.shape[1], top_p=0.7))


def test_the_first_of_equal_logits_is_greedy() -> None:
    logits = torch.zeros(3, 400)
    logits[1, [399, 130, 257]] = 1.0
    logits[2, 399] = 1.0
    got, _ = sample(logits, parameters(3, 400, temperature=0.0), SamplingSpace(3, 400, CPU), truncated=False)
    assert got.tolist() == [0, 130, 399]


def test_excluded_tokens_are_never_drawn() -> None:
    logits = torch.full((12, 600), -math.inf)
    logits[:, [7, 300, 599]] = torch.tensor([0.0, 0.5, -3.0])
    for options in ({}, {"top_k": 50}, {"top_p": 0.99}, {"min_p": 0.01}, {"temperature": 0.0}):
        assert_same(logits, parameters(12, 600, **options))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_not_ok_and_alone(poison: float) -> None:
    logits = text_logits(3, 500)
    logits[1, 260] = poison
    for options in ({"temperature": 0.0}, {}, {"top_k": 9}):
        assert_same(logits, parameters(3, 500, **options))
    logits[1] = -math.inf
    assert_same(logits, parameters(3, 500, top_k=9))


def test_one_truncated_row_among_many_greedy_ones() -> None:
    vocab, cut, poisoned = 700, 9, 4
    rows = joined(
        parameters(cut, vocab, temperature=0.0),
        parameters(1, vocab, temperature=0.8, top_k=6, top_p=0.9, first_seed=70),
        parameters(4, vocab, temperature=0.0),
        parameters(1, vocab, min_p=0.3, first_seed=90),
    )
    logits = text_logits(len(rows.keys), vocab)
    logits[poisoned, 3] = math.nan
    assert_same(logits, rows)
    got, _ = sample(logits, rows, SamplingSpace(len(logits), vocab, CPU))
    for row in (0, cut, len(logits) - 1):
        own = RowParameters(*(getattr(rows, name)[row : row + 1] for name in RowParameters.__slots__))
        alone, _ = sample(logits[row : row + 1], own, SamplingSpace(1, vocab, CPU))
        assert int(alone) == int(got[row])


@pytest.mark.parametrize("invariant", [True, False])
def test_an_invariant_space_sums_a_row_in_one_order_whatever_the_batch(invariant: bool) -> None:
    vocab = 3000
    rows, logits = parameters(MANY_ROWS, vocab), text_logits(MANY_ROWS, vocab).bfloat16()
    whole = SamplingSpace(MANY_ROWS, vocab, CPU, invariant=invariant)
    got, _ = sample(logits, rows, whole, truncated=False)
    assert got.tolist() == expected(logits, rows)[0]
    one = RowParameters(*(getattr(rows, name)[5:6] for name in RowParameters.__slots__))
    alone = SamplingSpace(1, vocab, CPU, invariant=invariant)
    sample(logits[5:6].float(), one, alone, truncated=False)
    assert torch.equal(alone.masses[0], whole.masses[5]) == invariant


def test_rows_of_a_wider_tensor_and_padding() -> None:
    wide = torch.full((6, 640), 1e9)
    wide[:, :600] = text_logits(6, 600)
    space, rows = SamplingSpace(6, 600, CPU), parameters(6, 600, top_p=0.9)
    space.token_ids.fill_(77)
    got, _ = sample(wide[:4, :600], rows, space)
    assert got.tolist() == expected(wide[:4, :600], rows)[0]
    assert space.token_ids[4:].tolist() == [77, 77]


def few_at_a_time(rows: RowParameters) -> list[RowParameters]:
    """In one pass of the kernel each, which the interpreter takes a tenth of the time for."""
    count = MANY_ROWS - 1
    fields = [getattr(rows, field.name) for field in dataclasses.fields(rows)]
    return [
        RowParameters(*(field[start : start + count] for field in fields))
        for start in range(0, len(rows.keys), count)
    ]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "top_p": 0.9}], ids=str)
def test_draws_follow_the_distribution(options: dict[str, float]) -> None:
    """Chi-square of 60 draws of one distribution, each with a seed of its own."""
    vocab, draws = 8, 60
    logits = torch.linspace(0.0, 2.0, vocab)[torch.randperm(vocab)]
    rows = parameters(draws, vocab, **options)  # type: ignore[arg-type]
    space = SamplingSpace(draws, vocab, CPU)
    got = torch.cat(
        [
            sample(logits.expand(len(part.keys), vocab), part, space, truncated=bool(options))[0].clone()
            for part in few_at_a_time(rows)
        ]
    )
    weights = (logits.double() / options.get("temperature", 1.0)).softmax(0)
    falling = weights.sort(descending=True).values
    least = falling[int(options.get("top_k", vocab)) - 1]
    least = max(
        least, falling[int((falling.cumsum(0) < options.get("top_p", 2.0)).sum().clamp(max=vocab - 1))]
    )
    weights = torch.where(weights >= least, weights, 0.0)
    kept, wanted = weights > 0, draws * weights / weights.sum()
    counts = torch.bincount(got, minlength=vocab).double()
    assert counts[~kept].sum() == 0
    chi_square = float(((counts - wanted) ** 2 / wanted)[kept].sum())
    degrees = int(kept.sum()) - 1
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees), chi_square
