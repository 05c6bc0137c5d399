"""Choose one token per row of logits: greedy, by temperature, or from a truncated distribution. Pure functions.

A draw inverts the cumulative distribution, over tokens in a fixed order, at one uniform number per row, in float64.
Every function returns token ids [n] int64 and ok [n] bool. ok is False, and the token 0, where a row holds NaN or
+Inf or has no token left. A logit of -Inf only excludes its token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal_engine.selection import Candidates, every_token, largest, sorted_values

_FOLD = 128  # tokens per column in `draw`, at most
_ALIGNED_COLUMNS = 16  # so that a GPU reads rows of columns in whole words
_MANY_BLOCKS = 256  # of `largest`, when top_p decides; nuclei of text are rarely wider
_FEW_BLOCKS = 64  # when every row has top_k <= _SMALL_TOP_K
_SMALL_TOP_K = 50
_DEEP_ROWS = 64  # whose whole vocabulary a GPU sorts at a time
_BELOW_ONE = 1.0 - 2.0**-50


@dataclass(frozen=True, slots=True)
class Truncation:
    """How n rows cut their distributions; each [n, 1]. Ties with the last token kept are kept.

    min_p: tokens less likely than min_p times the likeliest go first (0 = none; float32)
    top_k: then all but the k likeliest (vocabulary size = none; int64)
    top_p: then, of what is left, all beyond the likeliest that together reach top_p (inf = none; float64)
    nucleus_only: the rows that have top_p alone, so that their mass is that of the whole vocabulary
    """

    min_p: Tensor
    top_k: Tensor
    top_p: Tensor
    nucleus_only: Tensor | slice | None
    max_top_k: int
    any_top_p: bool

    def take(self, rows: Tensor) -> Truncation:
        """Some of the rows; for a caller that looks at their whole vocabulary."""
        return Truncation(
            self.min_p[rows], self.top_k[rows], self.top_p[rows], None, self.max_top_k, self.any_top_p
        )


def greedy(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [n, V], any float dtype: the first of the largest logits. One pass: a maximum carries NaN and Inf along."""
    largest_value, token_ids = x.max(dim=-1)
    return _checked(token_ids, largest_value)


def columns_of(vocab: int) -> int:
    """Into how many columns `draw` folds a vocabulary."""
    return -(-vocab // (_FOLD * _ALIGNED_COLUMNS)) * _ALIGNED_COLUMNS


def draw(x: Tensor, temperature: Tensor | None, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """From softmax(x / temperature). x [n, V] float32, temperature [n, 1] (None = all 1), uniform [n, 1] float64.

    In two levels, so that no running sum over the vocabulary is needed: choose a column by its mass, then a token inside
    it. Column c holds the tokens c, c + columns, c + 2 columns, ... of `columns_of`.
    """
    weights = _softmax(x, temperature)
    vocab, columns = weights.shape[1], columns_of(weights.shape[1])
    whole, rest = divmod(vocab, columns)
    mass = weights[:, : vocab - rest].reshape(x.shape[0], whole, columns).sum(1)
    mass[:, :rest] += weights[:, vocab - rest :]
    mass = mass.cumsum(1, dtype=torch.float64)
    column = _invert(mass, uniform)
    below = torch.where(column > 0, mass.gather(1, (column - 1).clamp_(min=0)), 0.0)
    ids = column + torch.arange(0, vocab, columns, device=x.device)
    inside = weights.gather(1, ids.clamp(max=vocab - 1)).masked_fill_(ids >= vocab, 0.0)
    fraction = (uniform * mass[:, -1:] - below) / (mass.gather(1, column) - below)
    chosen = _invert(inside.cumsum(1, dtype=torch.float64), fraction)
    return _checked(ids.gather(1, chosen)[:, 0], mass[:, -1])


def draw_truncated(
    x: Tensor, temperature: Tensor | None, cut: Truncation, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """As `draw`, after `cut`. Looks at the largest logits first; a row whose cut lies deeper sorts its vocabulary.

    Both ways keep the same set and draw in order of token id, so the way taken does not show in the token.
    """
    shallow = not cut.any_top_p and cut.max_top_k <= _SMALL_TOP_K
    candidates = largest(x, _FEW_BLOCKS if shallow else _MANY_BLOCKS)
    total = _total(x, temperature, cut.nucleus_only)
    token_ids, ok, settled = _draw_kept(candidates, temperature, cut, total, uniform)
    deep = (ok & ~settled).nonzero()[:, 0]
    # A CPU takes them one by one, so that what is computed for a row stays in its cache.
    step = 1 if x.device.type == "cpu" else _DEEP_ROWS
    for start in range(0, len(deep), step):
        rows = deep[start : start + step]
        own = None if temperature is None else temperature[rows]
        every = every_token(x[rows])
        token_ids[rows], ok[rows], _ = _draw_kept(every, own, cut.take(rows), None, uniform[rows])
    return token_ids, ok


def _draw_kept(
    candidates: Candidates, temperature: Tensor | None, cut: Truncation, total: Tensor | None, uniform: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids [n], ok [n], and settled [n]: the cut lies above the candidates' floor, so it is exact."""
    top = candidates.values.amax(1, keepdim=True)
    weights = _weights(candidates.values, top, temperature)
    floor = _weights(candidates.floor, top, temperature)
    least = _least_kept(weights, floor, cut, total)
    chosen = _invert(_at_least(weights, least).cumsum(1, dtype=torch.float64), uniform)
    token_ids, ok = _checked(candidates.token_ids(chosen)[:, 0], top[:, 0])
    return token_ids, ok, _settled(least, floor)[:, 0]


def _least_kept(weights: Tensor, floor: Tensor, cut: Truncation, total: Tensor | None) -> Tensor:
    """The smallest weight [n, 1] that `cut` keeps. weights [n, C] are relative to the largest, as min_p is."""
    falling = sorted_values(weights).flip(1)
    last = weights.shape[1] - 1
    least = torch.maximum(falling.gather(1, (cut.top_k - 1).clamp(max=last)), cut.min_p)
    if not cut.any_top_p:
        return least
    mass = _at_least(falling, least).cumsum(1, dtype=torch.float64)
    whole = mass[:, -1:]
    if total is not None:  # the candidates hold all the mass only where top_k or min_p cut among them
        whole = torch.where(_settled(least, floor), whole, total)
    needed = torch.searchsorted(mass, cut.top_p * whole).clamp_(max=last)
    return torch.maximum(least, falling.gather(1, needed))


def _settled(least: Tensor, floor: Tensor) -> Tensor:
    """Whether no token outside the candidates can be kept, or none outside has any weight."""
    return (least > floor) | (floor == 0.0)


def _total(x: Tensor, temperature: Tensor | None, rows: Tensor | slice | None) -> Tensor:
    """Sum of all weights relative to the largest, [n, 1] float64; +inf where nobody will need it."""
    total = torch.full((x.shape[0], 1), torch.inf, dtype=torch.float64, device=x.device)
    if rows is not None:
        likeliest = _softmax(x[rows], None if temperature is None else temperature[rows]).amax(
            1, keepdim=True
        )
        total[rows] = likeliest.double().reciprocal()
    return total


def _weights(x: Tensor, top: Tensor, temperature: Tensor | None) -> Tensor:
    x = x - top
    return (x if temperature is None else x.div_(temperature)).exp_()


def _at_least(weights: Tensor, least: Tensor) -> Tensor:
    """weights where they are at least `least`, else 0. A float mask: on a CPU four times faster than torch.where."""
    return torch.ge(weights, least, out=torch.empty_like(weights)).mul_(weights)


def _softmax(x: Tensor, temperature: Tensor | None) -> Tensor:
    return (x if temperature is None else x / temperature).softmax(1)


def _invert(mass: Tensor, uniform: Tensor) -> Tensor:
    """mass [n, m] running sums, uniform [n, 1] -> [n, 1] the first index whose sum exceeds uniform * total.

    What is there has weight > 0, because the sum rises there.
    """
    point = mass[:, -1:] * uniform.clamp(0.0, _BELOW_ONE)
    return torch.searchsorted(mass, point, right=True).clamp_(max=mass.shape[1] - 1)


def _checked(token_ids: Tensor, witness: Tensor) -> tuple[Tensor, Tensor]:
    """witness [n] is NaN or infinite where a row is not ok."""
    ok = witness.isfinite()
    return token_ids * ok, ok
