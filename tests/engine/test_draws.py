"""Draws against float64 oracles and transformers' processors: the same token for the same number, the same tokens kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal_engine.draws import Truncation, draw, draw_truncated
from shoal_engine.noise import key_of, uniforms
from shoal_engine.selection import largest

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
SHAPES = {"small": (300, 2.0), "peaked": (16_500, 3.5), "flat": (16_500, 0.7), "with a tail": (16_403, 3.0)}


def logits(rows: int, vocab: int, spread: float, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def column(value: float, rows: int, dtype: torch.dtype) -> Tensor:
    return torch.full((rows, 1), value, dtype=dtype)


def truncation(rows: int, vocab: int, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Truncation:
    return Truncation(
        min_p=column(min_p, rows, torch.float32),
        top_k=column(top_k or vocab, rows, torch.int64),
        top_p=column(top_p if top_p < 1 else np.inf, rows, torch.float64),
        nucleus_only=slice(None) if not top_k and not min_p else None,
        max_top_k=top_k or vocab,
        any_top_p=top_p < 1,
    )


def to(cut: Truncation, device: str) -> Truncation:
    return Truncation(
        cut.min_p.to(device),
        cut.top_k.to(device),
        cut.top_p.to(device),
        cut.nucleus_only,
        cut.max_top_k,
        cut.any_top_p,
    )


def plain_kept(
    row: NDArray[np.float64], temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> NDArray[np.float64]:
    """Weights relative to the largest; 0 where cut away."""
    weights = np.exp((row - row.max()) / temperature)
    weights[weights < min_p] = 0.0
    if top_k:
        weights[weights < np.sort(weights)[-top_k]] = 0.0
    order = np.argsort(-weights, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    weights[order[before >= top_p * weights.sum()]] = 0.0
    return weights


CUTS: dict[str, dict[str, Any]] = {
    "top_k": {"top_k": 50},
    "wide top_k": {"top_k": 2000},
    "top_p": {"top_p": 0.9},
    "wide top_p": {"top_p": 0.999},
    "tiny top_p": {"top_p": 1e-9},
    "min_p": {"min_p": 0.1},
    "tiny min_p": {"min_p": 1e-6},
    "top_k and top_p": {"top_k": 40, "top_p": 0.8},
    "min_p and top_p": {"min_p": 0.02, "top_p": 0.7},
    "tiny min_p and top_p": {"min_p": 1e-5, "top_p": 0.98},
    "all": {"top_k": 300, "top_p": 0.95, "min_p": 0.01},
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cut", CUTS)
def test_a_truncated_draw_is_the_plain_inverse_of_the_kept_tokens_in_token_order(
    cut: str, shape: str, device: str
) -> None:
    vocab, spread = SHAPES[shape]
    rows, fields = 24, {**CUTS[cut], **({"top_k": 200} if CUTS[cut].get("top_k", 0) > vocab else {})}
    x = logits(rows, vocab, spread, seed=len(cut))
    uniform = torch.rand(rows, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for temperature in (1.0, 0.7):
        column_or_none = None if temperature == 1.0 else column(temperature, rows, torch.float32).to(device)
        tokens, ok = draw_truncated(
            x.to(device), column_or_none, to(truncation(rows, vocab, **fields), device), uniform.to(device)
        )
        assert ok.all()
        for row in range(rows):
            mass = np.cumsum(plain_kept(x[row].double().numpy(), temperature, **fields))
            wanted = int(np.searchsorted(mass, mass[-1] * float(uniform[row]), side="right"))
            assert int(tokens[row]) == wanted


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vocab", [1, 7, 127, 128, 129, 1000, 16_403])
def test_evenly_spaced_numbers_draw_each_token_in_proportion_to_its_probability(
    vocab: int, device: str
) -> None:
    count = 4000
    x = logits(1, vocab, 2.0)
    uniform = ((torch.arange(count, dtype=torch.float64) + 0.5) / count).unsqueeze(1)
    tokens = torch.cat(
        [
            draw(x.expand(len(part), -1).to(device), None, part.to(device))[0].cpu()
            for part in uniform.split(500)
        ]
    )
    counts = torch.bincount(tokens, minlength=vocab)
    wanted = x[0].double().softmax(0) * count
    assert int((counts - wanted).abs().max()) <= 1


@pytest.mark.parametrize("extreme", [0.0, 1.0 - 2.0**-53, 1.0])
def test_the_ends_of_the_interval_draw_tokens_that_have_a_probability(extreme: float) -> None:
    x = torch.full((3, 1000), -torch.inf)
    x[0, 999] = x[1, 0] = x[2, 500] = 1.0
    x[2, 501] = -110.0  # e^-111 is 0 in float32
    uniform = column(extreme, 3, torch.float64)
    assert draw(x, None, uniform)[0].tolist() == [999, 0, 500]
    assert draw_truncated(x, None, truncation(3, 1000, top_p=0.9999), uniform)[0].tolist() == [999, 0, 500]


def test_ties_with_the_last_token_kept_are_kept() -> None:
    x = torch.tensor([[5.0, 3.0, 3.0, 3.0, 1.0]])
    many = x.expand(2000, -1)
    uniform = ((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000).unsqueeze(1)
    for fields in ({"top_k": 2}, {"top_p": 0.75}, {"min_p": 0.135}):
        tokens, _ = draw_truncated(many, None, truncation(2000, 5, **fields), uniform)
        assert set(tokens.tolist()) == {0, 1, 2, 3}


def hf_kept(x: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    ids = torch.zeros(x.shape[0], 1, dtype=torch.int64)
    steps: list[Any] = [TemperatureLogitsWarper(temperature)]
    steps += [MinPLogitsWarper(min_p)] if min_p else []
    steps += [TopKLogitsWarper(top_k)] if top_k else []
    steps += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    for step in steps:
        x = step(ids, x)
    return x > -torch.inf


@pytest.mark.parametrize("temperature", [0.5, 1.4])
@pytest.mark.parametrize(
    "cut", [name for name in CUTS if name not in ("wide top_k", "wide top_p", "tiny min_p")]
)
def test_the_tokens_kept_are_those_that_transformers_keeps(cut: str, temperature: float) -> None:
    fields = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, **CUTS[cut]}
    count, vocab = 20_000, 80
    x = logits(1, vocab, 1.5, seed=3)
    fields["top_k"] = min(fields["top_k"], 50)
    uniform = ((torch.arange(count, dtype=torch.float64) + 0.5) / count).unsqueeze(1)
    kept = hf_kept(x, temperature, **fields)[0]
    rarest = float((x[0] / temperature).softmax(0)[kept].min())
    assert rarest * count > 1, "every kept token must show up, else this compares nothing"
    many = x.expand(count, -1)
    tokens, _ = draw_truncated(
        many, column(temperature, count, torch.float32), truncation(count, vocab, **fields), uniform
    )
    assert set(tokens.tolist()) == set(kept.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("vocab", [1000, 4096, 16_403])
def test_the_candidates_hold_every_logit_above_their_floor_under_their_own_ids(vocab: int) -> None:
    x = (logits(5, vocab, 3.0) * 4).round() / 4  # many ties
    found = largest(x, 40)
    index = torch.arange(found.values.shape[1]).expand(5, -1)
    ids = found.token_ids(index)
    assert torch.equal(x.gather(1, ids), found.values)
    assert (ids.diff(dim=1) > 0).all()
    assert torch.equal((x > found.floor).sum(1), (found.values > found.floor).sum(1))
    assert ((x >= found.floor).sum(1) >= 40).all()


def test_numbers_are_those_of_splitmix64() -> None:
    got = uniforms(np.zeros(3, dtype=np.uint64), np.arange(3))
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # its published outputs from state 0
    assert got.tolist() == [(value >> 11) * 2.0**-53 for value in known]


def test_numbers_of_neighbouring_seeds_and_positions_are_uniform_and_unrelated() -> None:
    keys = np.array([key_of(seed) for seed in range(-200, 200)], dtype=np.uint64)
    grid = np.stack([uniforms(keys, np.full(400, position)) for position in range(400)])
    assert abs(grid.mean() - 0.5) < 4 * (1 / 12 / grid.size) ** 0.5
    for shifted in (grid[1:] - grid[:-1], grid[:, 1:] - grid[:, :-1]):
        # The difference of two independent uniforms has variance 1/6.
        assert abs((shifted**2).mean() * 6 - 1) < 0.02
    counts = np.histogram(grid, bins=256, range=(0, 1))[0]
    statistic = ((counts - grid.size / 256) ** 2 / (grid.size / 256)).sum()
    assert statistic < 255 + 4 * (2 * 255) ** 0.5


def test_every_64_bit_seed_has_a_key_and_no_two_of_many_share_one() -> None:
    seeds = [-(2**63), 2**63 - 1, 2**64 - 1, *range(-50_000, 50_000)]
    keys = {key_of(seed) for seed in seeds}
    assert len(keys) == len(seeds) - 1  # 2^64 - 1 and -1 are the same 64 bits
    assert all(0 <= key < 2**64 for key in keys)
