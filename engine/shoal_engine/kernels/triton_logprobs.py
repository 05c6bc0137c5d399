"""Logprob and rank of chosen tokens from raw logits on the GPU, in one pass. Not the likeliest tokens: `logprobs.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal_engine.kernels.triton_jit import jit

_BLOCK = 4096


@jit
def _read(logits, token_ids, parts, vocab, stride, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (r, i): maximum, mass relative to it and number of tokens likelier than the chosen one, of one block."""
    row = logits + tl.program_id(0).to(tl.int64) * stride
    value = tl.load(row + tl.load(token_ids + tl.program_id(0))).to(tl.float32)
    ids = tl.program_id(1) * block + tl.arange(0, block)
    x = tl.load(row + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32)
    x = tl.where(x == x, x, float("inf"))
    top = tl.max(x, 0)
    base = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    at = parts + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * 3
    tl.store(at, top)
    tl.store(at + 1, tl.sum(tl.exp(x - base), 0))
    tl.store(at + 2, tl.sum((x > value).to(tl.float32), 0))


@jit
def _merge(  # type: ignore[no-untyped-def]
    logits, token_ids, parts, out, blocks, stride, lowest, block: tl.constexpr
):  # fmt: skip
    index = tl.program_id(0)
    place = tl.arange(0, block)
    at = parts + (index * blocks + place) * 3
    tops = tl.load(at, mask=place < blocks, other=float("-inf"))
    mass = tl.load(at + 1, mask=place < blocks, other=0.0)
    rank = 1.0 + tl.sum(tl.load(at + 2, mask=place < blocks, other=0.0), 0)
    top = tl.max(tops, 0)
    value = tl.load(logits + index.to(tl.int64) * stride + tl.load(token_ids + index)).to(tl.float32)
    logprob = value - top - tl.log(tl.sum(mass * tl.exp(tops - top), 0))
    tl.store(out + index * 2, tl.maximum(logprob, lowest))
    tl.store(out + index * 2 + 1, rank)


def chosen_logprobs(logits: Tensor, token_ids: Tensor, lowest: float) -> Tensor:
    """logits [R, V] of any float dtype, token_ids [R] int64 -> [R, 2] float32: logprob, and 1 + tokens strictly likelier.

    As `RankedLogprobs.chosen`, with `lowest` for what is below it; a row that is not ok has no meaning here.
    """
    rows, vocab = logits.shape
    blocks = triton.cdiv(vocab, _BLOCK)
    parts = torch.empty((rows, blocks, 3), dtype=torch.float32, device=logits.device)
    out = torch.empty((rows, 2), dtype=torch.float32, device=logits.device)
    _read[(rows, blocks)](logits, token_ids, parts, vocab, logits.stride(0), _BLOCK, num_warps=8)
    _merge[(rows,)](
        logits, token_ids, parts, out, blocks, logits.stride(0), lowest,
        triton.next_power_of_2(blocks), num_warps=1,
    )  # fmt: skip
    return out
