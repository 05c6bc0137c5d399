"""Choose a token for each row of logits on the GPU: two kernels, four when a row truncates. No sort, no host, no sync.

The meaning is `shoal_engine.sampler`'s from temperature on, its seeds included: one uniform number per row and position,
inverted in the same order, so the same tokens as on a CPU but where a number falls within rounding of a boundary.
Edits and penalties of logits come before, logprobs are `shoal_engine.logprobs`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from shoal_engine.draws import columns_of
from shoal_engine.kernels.triton_choice import choose
from shoal_engine.kernels.triton_columns import FOLD, MANY_ROWS, columns_tile, fold_columns
from shoal_engine.kernels.triton_deep import choose_deep
from shoal_engine.kernels.triton_truncated import (
    MAX_CANDIDATES,
    MAX_COLUMNS,
    NUCLEUS_COLUMNS,
    choose_truncated,
)

_GROUP = 16  # columns whose tokens are collected at once
_WAYS = 8  # bounds of the candidates tried at once
_PAIRS = 8  # candidates with which all are compared at once
_WARPS = 16
_DEEP_BLOCK = 8192


@dataclass(frozen=True, slots=True)
class RowParameters:
    """What each of up to R rows asks for, on the device, so that a recorded graph reads what the host last wrote.

    temperature [R] float32, 0 = greedy; min_p [R] float32, 0 = none; top_k [R] int32, at least the vocabulary = none;
    top_p [R] float64, inf = none; keys [R] int64, the bits of `noise.key_of`; positions [R] int64, output tokens so far.
    """

    temperature: Tensor
    min_p: Tensor
    top_k: Tensor
    top_p: Tensor
    keys: Tensor
    positions: Tensor


class SamplingSpace:
    """Results and workspace for up to max_rows rows, allocated once: recorded graphs hold its addresses.

    invariant: a row's token has nothing to do with how many rows there are, nor with their type, not even in rounding.
    """

    def __init__(
        self, max_rows: int, vocab_size: int, device: torch.device, *, invariant: bool = False
    ) -> None:
        self.invariant = invariant
        self.vocab_size = vocab_size
        self.columns = columns_of(vocab_size)
        self.maxima = torch.empty((max_rows, self.columns), dtype=torch.float32, device=device)
        self.masses = torch.empty((max_rows, self.columns), dtype=torch.float32, device=device)
        self.results = torch.zeros(
            (max_rows * 9,), dtype=torch.uint8, device=device
        )  # so that one copy takes them
        self.token_ids = self.results[: max_rows * 8].view(torch.int64)
        self.ok = self.results[max_rows * 8 :].view(torch.int8)
        self.deep = torch.empty((max_rows,), dtype=torch.int32, device=device)
        self.chosen = torch.empty((max_rows, MAX_COLUMNS), dtype=torch.int32, device=device)
        self.values = torch.empty((max_rows, MAX_CANDIDATES), dtype=torch.float32, device=device)
        self.ids = torch.empty((max_rows, MAX_CANDIDATES), dtype=torch.int32, device=device)
        self.kept = torch.empty((max_rows, MAX_CANDIDATES), dtype=torch.float32, device=device)


def sample(
    logits: Tensor, rows: RowParameters, space: SamplingSpace, truncated: bool = True
) -> tuple[Tensor, Tensor]:
    """logits [R, V], float32 or bfloat16, inner stride 1 -> token ids [R] int64 and ok [R] int8, views of `space`.

    ok is 0, and the token 0, where a row holds NaN or +Inf or no token is left. `truncated` may be False when no row has
    top_k, top_p or min_p.
    """
    count, vocab = logits.shape
    if vocab != space.vocab_size or logits.stride(1) != 1 or count > len(space.token_ids):
        raise ValueError(
            f"expected logits of at most {len(space.token_ids)} rows and {space.vocab_size} tokens"
        )
    columns, stride = space.columns, logits.stride(0)
    asked = rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.keys, rows.positions
    block, chunk, warps = columns_tile(MANY_ROWS if space.invariant else count)
    if space.invariant:  # where others are edited, all are float32
        logits = logits.float()
        stride = logits.stride(0)
    fold_columns[(count, triton.cdiv(columns, block))](
        logits, rows.temperature, space.maxima, space.masses, vocab, columns, stride, FOLD, block, chunk,
        num_warps=warps,
    )  # fmt: skip
    columns_block = triton.next_power_of_2(columns)
    choose[(count,)](
        logits, *asked, space.maxima, space.masses, space.token_ids, space.ok,
        vocab, columns, stride, FOLD, columns_block, num_warps=4,
    )  # fmt: skip
    if truncated:
        choose_truncated[(count,)](
            logits, *asked, space.maxima, space.masses, space.ok, space.token_ids, space.deep,
            space.chosen, space.values, space.ids, space.kept, vocab, columns, stride,
            FOLD, columns_block, _GROUP, NUCLEUS_COLUMNS, MAX_COLUMNS, MAX_CANDIDATES, _WAYS, _PAIRS, num_warps=_WARPS,
        )  # fmt: skip
        choose_deep[(count,)](
            logits, *asked, space.maxima, space.deep, space.token_ids,
            vocab, columns, stride, columns_block, _DEEP_BLOCK, num_warps=16,
        )  # fmt: skip
    return space.token_ids[:count], space.ok[:count]
