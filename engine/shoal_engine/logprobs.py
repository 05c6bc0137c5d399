"""Log-probabilities of chosen and likeliest tokens from raw logits, as the model gave them. Chooses nothing.

The full log-softmax is never kept: rows are read a few at a time and reduced to a few numbers each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal_engine.errors import EngineError
from shoal_engine.messages import Logprob, TokenLogprobs
from shoal_engine.sampling_params import MAX_LOGPROBS
from shoal_engine.selection import largest
from shoal_engine.working_set import rows_at_a_time

CHUNK_BYTES = 64 * 2**20  # of float32 logits: enough rows for an efficient product with the output layer
MIN_LOGPROB = -9999.0  # stands for -Inf, which JSON cannot say; OpenAI's own floor


@dataclass(frozen=True, slots=True)
class RankedLogprobs:
    """For n rows, on the logits' device. A rank is 1 + the number of tokens that are strictly likelier.

    chosen [n, 2] float32 = logprob, rank; token_ids [n], finite [n]; top_ids and top [n, m] by falling logprob,
    m = MAX_LOGPROBS whatever the rows ask for, so that what one gets does not depend on its neighbours.
    """

    token_ids: Tensor
    finite: Tensor
    chosen: Tensor
    top_ids: Tensor
    top: Tensor

    def messages(self, num_top: Sequence[int]) -> list[TokenLogprobs | None]:
        """Copy to the host. num_top [n]: how many likeliest tokens each row wants; None for a row with NaN or Inf."""
        return [
            _message(token_id, chosen, ids[:count], top[:count]) if finite else None
            for count, finite, token_id, chosen, ids, top in zip(
                num_top,
                self.finite.tolist(),
                self.token_ids.tolist(),
                self.chosen.tolist(),
                self.top_ids.tolist(),
                self.top.tolist(),
                strict=True,
            )
        ]


def rows_per_chunk(vocab_size: int) -> int:
    """How many rows of logits a caller should compute at a time, so that a long prompt costs CHUNK_BYTES."""
    return max(1, CHUNK_BYTES // (4 * vocab_size))


def ranked_logprobs(logits: Tensor, token_ids: Tensor) -> RankedLogprobs:
    """logits [n, V] of any float dtype, token_ids [n] int64 in range -> logprobs of these and of the likeliest tokens."""
    step = rows_at_a_time(logits.shape[1], logits.device)
    parts = [
        _ranked(logits[start : start + step].float(), token_ids[start : start + step])
        for start in range(0, len(token_ids), step)
    ]
    finite, chosen, top_ids, top = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return RankedLogprobs(token_ids, finite, chosen, top_ids, top)


def prompt_logprobs(logits: Tensor, next_ids: Tensor, num_top: int) -> list[TokenLogprobs]:
    """Logprobs of the prompt tokens that follow. logits [T, V], next_ids [T] int64 on the same device: token t + 1 of row t.

    For a long prompt pass slices of `rows_per_chunk` rows and join the lists. Raises EngineError on NaN or Inf.
    """
    if not len(next_ids):
        return []
    found = ranked_logprobs(logits, next_ids).messages([num_top] * len(next_ids))
    good = [one for one in found if one is not None]
    if len(good) != len(found):
        raise not_finite()
    return good


def not_finite() -> EngineError:
    """The error of a request whose row of logits holds NaN or Inf, or has no token left to choose."""
    return EngineError(
        "the model produced logits that are not finite numbers, so no token can be chosen; try again, and if it repeats"
        " check the checkpoint and the dtype of this replica",
        code="logits_not_finite",
    )


def _ranked(x: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [n, V] float32, n >= 1. A logprob is (logit - largest) + log of the largest probability."""
    value = x.gather(1, token_ids.unsqueeze(1))
    # As floats: on a CPU a comparison into bools and their sum take four times as long.
    rank = 1.0 + torch.gt(x, value, out=torch.empty_like(x)).sum(1, keepdim=True)  # exact below 2^24
    top_ids, top = _top(x)
    likeliest = x.softmax(1).amax(1, keepdim=True).log()
    logprobs = (torch.cat((value, top), dim=1) - top[:, :1] + likeliest).clamp(min=MIN_LOGPROB)
    chosen = torch.cat((logprobs[:, :1], rank), dim=1)
    return likeliest[:, 0].isfinite(), chosen, top_ids, logprobs[:, 1:]


def _top(x: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids and logits [n, m], falling. Equals stand in order of token id; which of them make the end is open."""
    candidates = largest(x, MAX_LOGPROBS)
    top, index = candidates.values.topk(min(MAX_LOGPROBS, x.shape[1]), dim=1)
    index, order = index.sort(dim=1)  # candidates stand in order of token id
    top, falling = top.gather(1, order).sort(dim=1, descending=True, stable=True)
    return candidates.token_ids(index.gather(1, falling)), top


def _message(token_id: int, chosen: list[float], top_ids: list[int], top: list[float]) -> TokenLogprobs:
    ranked = []
    rank = 1
    for place, (other, logprob) in enumerate(zip(top_ids, top, strict=True)):
        if place and logprob < top[place - 1]:
            rank = place + 1
        ranked.append(Logprob(other, logprob, rank))
    return TokenLogprobs(Logprob(token_id, chosen[0], int(chosen[1])), ranked)
