"""The torch twin against formulas written out token by token: it is the oracle of all other kernels."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch

from shoal_engine.kernels.cpu import CpuKernels, cpu_kernels
from shoal_engine.kernels.interface import AttentionScale, HeadLayout
from shoal_engine.kernels.reference import ReferenceKernels
from tests.engine.kernels.paged_batches import attention_batch, filled_cache

HEADS = HeadLayout(4, 2, 8)


def written_out(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: AttentionScale, sink: float | None
) -> torch.Tensor:
    """One query [D] over keys and values [n, D], in float64."""
    logits = [scale.scale * float(q @ key) for key in keys]
    if scale.softcap is not None:
        logits = [scale.softcap * math.tanh(x / scale.softcap) for x in logits]
    shares = [math.exp(x) for x in logits]
    whole = sum(shares) + (math.exp(sink) if sink is not None else 0.0)
    return sum(share / whole * value for share, value in zip(shares, values, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("window", [None, 5])
def test_attention_is_the_formula(softcap: float | None, has_sinks: bool, window: int | None) -> None:
    torch.manual_seed(0)
    batch, num_blocks = attention_batch([3], [11], block_tokens=4)
    cache = filled_cache(batch, num_blocks, HEADS, torch.float32)
    q = torch.randn(3, 4, 8)
    sinks = torch.tensor([-1.0, 0.5, 2.0, 4.0]) if has_sinks else None
    scale = AttentionScale(0.7, window, softcap, sinks)
    got = ReferenceKernels().attend(q, HEADS, batch, cache, scale).view(3, 4, 8)
    tokens = (
        cache[batch.tables[0].long()].double().permute(1, 2, 0, 3, 4).flatten(2, 3)
    )  # [2, kv_heads, tokens, D]
    for row, head in ((row, head) for row in range(3) for head in range(4)):
        seen = slice(max(0, 9 + row - window) if window else 0, 9 + row)
        keys, values = tokens[0, head // 2, seen], tokens[1, head // 2, seen]
        want = written_out(
            q[row, head].double(), keys, values, scale, float(sinks[head]) if sinks is not None else None
        )
        torch.testing.assert_close(got[row, head].double(), want, rtol=1e-5, atol=1e-6)


def test_a_float8_cache_is_rounded_and_bounded() -> None:
    batch, num_blocks = attention_batch([2], [2], block_tokens=4)
    cache = torch.zeros(num_blocks, 2, 2, 4, 8).to(torch.float8_e4m3fn)
    qkv = torch.full((2, HEADS.qkv_size), 1.07)
    qkv[1] = -1e6
    no_turn = torch.cat((torch.ones(2, 4), torch.zeros(2, 4)), dim=1)
    ReferenceKernels().rotate_and_store(qkv, HEADS, no_turn, batch, cache)
    stored = cache[batch.tables[0].long()].float()
    assert torch.all(stored[:, :, :, 0] == 1.125)  # of the steps of 1/8 the nearest
    assert torch.all(stored[:, :, :, 1] == -448.0)
    q = torch.randn(2, 4, 8)
    scale = AttentionScale(0.3)
    want = ReferenceKernels().attend(q, HEADS, batch, cache.float(), scale)
    torch.testing.assert_close(ReferenceKernels().attend(q, HEADS, batch, cache, scale), want)


@pytest.mark.parametrize(
    "scale",
    [AttentionScale(1.0, softcap=5.0), AttentionScale(1.0, sinks=torch.zeros(4))],
    ids=["cap", "sinks"],
)
def test_the_cpu_refuses_what_it_does_not_compute(scale: AttentionScale) -> None:
    batch, num_blocks = attention_batch([1], [1], block_tokens=16)
    kernels = cast(CpuKernels, cpu_kernels())
    cache = torch.zeros(num_blocks, 2, 2, 16, 8)
    with pytest.raises(ValueError, match="softcap"):
        kernels.attend(torch.zeros(1, 4, 8), HEADS, batch, cache, scale)
