"""What is sampled on a GPU to check and time `triton_sampling`, and the checks: against `draws.py`, a sort, chi-square."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from shoal_engine.draws import Truncation, draw, draw_truncated, greedy
from shoal_engine.kernels.triton_sampling import RowParameters, SamplingSpace, sample
from shoal_engine.noise import key_of, uniforms

Peer = Callable[[Tensor], object]
DISAGREEMENT = 0.01


def exponential_race(x: Tensor) -> Tensor:
    """torch.multinomial for one draw, without its checks that stop a graph."""
    weights = x.float().softmax(-1)
    return weights.div_(torch.empty_like(weights).exponential_()).argmax(-1)


def sorted_top_p(x: Tensor) -> Tensor:
    probabilities, order = x.float().softmax(-1).sort(-1, descending=True)
    beyond = probabilities.cumsum(-1) - probabilities > 0.95
    chosen = exponential_race(probabilities.masked_fill_(beyond, 0.0).log())
    return order.gather(1, chosen.unsqueeze(1))


def top_k(x: Tensor) -> Tensor:
    values, order = x.float().topk(50)
    return order.gather(1, exponential_race(values).unsqueeze(1))


@dataclass(frozen=True)
class Case:
    name: str
    peer: Peer
    options: dict[str, float] = field(default_factory=dict)
    flat: bool = False


CASES = [
    Case("greedy", lambda x: x.argmax(-1), {"temperature": 0.0}),
    Case("temperature 0.7", lambda x: exponential_race(x / 0.7), {"temperature": 0.7}),
    Case("top-k 50", top_k, {"top_k": 50}),
    Case("top-k 50, top-p 0.95", top_k, {"top_k": 50, "top_p": 0.95}),
    Case("top-p 0.95", sorted_top_p, {"top_p": 0.95}),
    Case("min-p 0.05", exponential_race, {"min_p": 0.05}),
    Case("top-p 0.95, flat", sorted_top_p, {"top_p": 0.95}, flat=True),
    Case("each row its own", sorted_top_p, {"mixed": 1.0}),
]


def parameters(rows: int, vocab: int, options: Mapping[str, float]) -> RowParameters:
    keys = np.array([key_of(row) for row in range(rows)], dtype=np.uint64).view(np.int64)
    one = RowParameters(
        torch.full((rows,), options.get("temperature", 1.0)),
        torch.full((rows,), options.get("min_p", 0.0)),
        torch.full((rows,), int(options.get("top_k", vocab)), dtype=torch.int32),
        torch.full((rows,), options.get("top_p", math.inf), dtype=torch.float64),
        torch.from_numpy(keys.copy()),
        torch.arange(rows),
    )
    if "mixed" in options:
        one.temperature[::4] = 0.0
        one.top_k[1::4] = torch.randint(1, 100, one.top_k[1::4].shape, dtype=torch.int32)
        one.top_p[2::4] = 0.5 + 0.5 * torch.rand(one.top_p[2::4].shape, dtype=torch.float64)
        one.min_p[1::8] = 0.02
    return RowParameters(*(getattr(one, name).cuda() for name in RowParameters.__slots__))


def by_draws(x: Tensor, rows: RowParameters) -> Tensor:
    """What the device-independent sampler chooses; groups as SamplingBatch makes them."""
    vocab, out = x.shape[1], torch.zeros(len(x), dtype=torch.int64, device=x.device)
    numbers = uniforms(rows.keys.cpu().numpy().view(np.uint64), rows.positions.cpu().numpy())
    uniform = torch.from_numpy(numbers).cuda().unsqueeze(1)
    cut = (rows.top_k < vocab) | (rows.top_p < math.inf) | (rows.min_p > 0)
    cold = rows.temperature == 0
    for kind, mask in enumerate((cold, ~cold & ~cut, ~cold & cut)):
        own = mask.nonzero()[:, 0]
        if not len(own):
            continue
        heat = rows.temperature[own].unsqueeze(1)
        if kind == 0:
            out[own] = greedy(x[own])[0]
        elif kind == 1:
            out[own] = draw(x[own].float(), heat, uniform[own])[0]
        else:
            k, p, least = rows.top_k[own], rows.top_p[own], rows.min_p[own]
            alone = ((k >= vocab) & (least == 0)).nonzero()[:, 0]
            truncation = Truncation(
                least.unsqueeze(1), k.long().unsqueeze(1), p.unsqueeze(1), alone if len(alone) else None,
                int(k.max()), bool((p < math.inf).any()),
            )  # fmt: skip
            out[own] = draw_truncated(x[own].float(), heat, truncation, uniform[own])[0]
    return out


def logits(case: Case, rows: int, vocab: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(rows, vocab, device="cuda")
    if case.flat:
        return (1.5 * x).to(dtype)
    falling = -1.6 * torch.arange(1, vocab + 1, device="cuda").log()
    shuffled = torch.stack([falling[torch.randperm(vocab, device="cuda")] for _ in range(rows)])
    return (shuffled + 0.3 * x).to(dtype)


def wrong_kept_sets(x: Tensor, rows: RowParameters, space: SamplingSpace) -> int:
    """How many rows that needed no sweep kept another set than a sort in float64 does. `space` is of one call."""
    vocab, wrong = x.shape[1], 0
    for row in (~space.deep[: len(x)].bool() & (rows.temperature > 0)).nonzero()[:32, 0].tolist():
        k, p, least = int(rows.top_k[row]), float(rows.top_p[row]), float(rows.min_p[row])
        if k >= vocab and p == math.inf and least == 0:
            continue
        weights = ((x[row].double() - x[row].max().double()) / rows.temperature[row].double()).exp()
        falling = weights.sort(descending=True).values
        bound = torch.maximum(falling[min(k, vocab) - 1], weights.new_tensor(least))
        left = falling * (falling >= bound)
        if p < math.inf:
            bound = torch.maximum(
                bound, left[int((left.cumsum(0) < p * left.sum()).sum().clamp(max=vocab - 1))]
            )
        want = (weights >= bound).nonzero()[:, 0]
        got = space.ids[row][space.kept[row] > 0].long().sort().values
        wrong += not torch.equal(got, want)
    return wrong


def check(case: Case, x: Tensor, rows: RowParameters, space: SamplingSpace) -> str:
    """Empty when right. The workspace is poisoned first."""
    for name in ("maxima", "masses", "values", "kept"):
        getattr(space, name).fill_(math.nan)
    space.token_ids.fill_(-7)
    got, ok = sample(x, rows, space)
    got, deep = got.clone(), int(space.deep[: len(x)].sum())
    kept = wrong_kept_sets(x, rows, space)
    want = by_draws(x, rows)
    different = int((got != want).sum())
    wrong = different > max(1, DISAGREEMENT * len(x)) or not bool(ok.all())
    again = not torch.equal(sample(x, rows, space)[0], got)
    wrong = wrong or kept > max(1, DISAGREEMENT * len(x))
    note = f"{different} rows differ" if different else ""
    note += f" {kept} kept sets differ" if kept else ""
    note += f" {deep} deep" if deep else ""
    return note + (" WRONG" if wrong else "") + (" NOT REPEATABLE" if again else "")


def check_distribution(vocab: int) -> None:
    """Chi-square of 2^17 draws of one small distribution inside a real vocabulary."""
    x = torch.full((1, vocab), -40.0, device="cuda")
    ids = torch.randperm(vocab, device="cuda")[:40]
    x[0, ids] = torch.linspace(0, 3, 40, device="cuda")
    rows, counts, space = (
        4096,
        torch.zeros(vocab, device="cuda"),
        SamplingSpace(4096, vocab, torch.device("cuda")),
    )
    for options in ({}, {"top_k": 25}, {"top_p": 0.8}):
        own, draws = parameters(rows, vocab, options), 0
        counts.zero_()
        for _ in range(32):
            counts += torch.bincount(sample(x.expand(rows, vocab), own, space)[0], minlength=vocab)
            own.positions.add_(rows)
            draws += rows
        weights = x[0].double().softmax(0)
        falling = weights.sort(descending=True).values
        least = falling[min(int(options.get("top_k", vocab)), vocab) - 1]
        least = torch.maximum(least, falling[int((falling.cumsum(0) < options.get("top_p", 0.999999)).sum())])
        weights = torch.where(weights >= least, weights, 0.0)
        wanted = draws * weights / weights.sum()
        kept = wanted > 5
        square = float(((counts - wanted) ** 2 / wanted)[kept].sum())
        outside = int(counts[weights == 0].sum())
        degrees = int(kept.sum()) - 1
        wrong = outside > 0 or square > degrees + 4 * math.sqrt(2 * degrees)
        print(
            f"chi-square of {draws} draws, {options}: {square:.1f} at {degrees} degrees, {outside} outside"
            f" {'WRONG' if wrong else 'right'}"
        )
