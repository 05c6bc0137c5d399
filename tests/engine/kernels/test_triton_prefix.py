"""Shared prefixes in Triton's interpreter: which runs are found, and that outputs stay those of the torch twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from shoal_engine.kernels.cuda import CudaKernels
from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadLayout
from shoal_engine.kernels.reference import ReferenceKernels
from shoal_engine.kernels.triton_decode import DecodeTiling
from shoal_engine.kernels.triton_prefix import LEAST_STEPS, ROWS, find_shared
from tests.engine.kernels.paged_batches import (
    attention_batch,
    filled_cache,
    poison_outputs,
    without_padding,
)

TILE, STEP = 16, 32
PAIRS = HeadLayout(ROWS // 2, 1, 16)  # so many heads that a window holds two requests
SMALL = HeadLayout(4, 2, 16)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    poison_outputs(monkeypatch)


def sharing(
    contexts: Sequence[int], links: Sequence[int], block_tokens: int = 16
) -> tuple[AttentionBatch, int]:
    """Decodes of which request r begins with the first links[r] tokens, in whole blocks, of the one before."""
    batch, num_blocks = attention_batch([1] * len(contexts), contexts, block_tokens)
    for row, tokens in enumerate(links):
        blocks = tokens // block_tokens
        batch.tables[row, :blocks] = batch.tables[row - 1, :blocks]
    return replace(batch, shares_prefixes=True), num_blocks


def twin_of_runs(batch: AttentionBatch, window_requests: int) -> tuple[list[int], list[int]]:
    """Steps and members of every request, one request after the other."""
    tables, lengths, size = batch.tables.tolist(), batch.context_lens.tolist(), batch.block_tokens
    common = [0] * len(lengths)
    for row in range(1, len(lengths)):
        if row % window_requests:
            blocks = min(lengths[row], lengths[row - 1]) // size
            pairs = zip(tables[row][:blocks], tables[row - 1][:blocks], strict=True)
            equal = [mine == before for mine, before in pairs]
            common[row] = (equal.index(False) if False in equal else blocks) * size // STEP
    steps, members, begin = [0] * len(lengths), [1] * len(lengths), 0
    for end in range(1, len(lengths) + 1):
        after = common[end + 1] if end + 1 < len(lengths) and (end + 1) % window_requests else 0
        if end == len(lengths) or common[end] < LEAST_STEPS or 2 * common[end] < after:
            for row in range(begin, end):
                members[row] = end - begin
                steps[row] = min(common[begin + 1 : end], default=0)
            begin = end
    return steps, members


@pytest.mark.parametrize("layout", [SMALL, PAIRS, HeadLayout(3, 1, 16)], ids=str)
@pytest.mark.parametrize("block_tokens", [4, 32])
def test_runs_are_those_of_the_twin(layout: HeadLayout, block_tokens: int) -> None:
    window = ROWS // (layout.num_heads // layout.num_kv_heads)
    generator = torch.Generator().manual_seed(block_tokens)
    found = 0
    for _ in range(6):
        count = int(torch.randint(1, 70, (), generator=generator))
        contexts = torch.randint(1, 900, (count,), generator=generator).tolist()
        links = [0]
        for row in range(1, count):
            most = min(contexts[row], contexts[row - 1]) - 1
            links.append(int(torch.rand((), generator=generator) * most * 1.2) if row % 5 else 0)
            links[row] = min(links[row], most)
        batch, _ = sharing(contexts, links, block_tokens)
        shared = find_shared(batch, layout, STEP)
        steps, members = twin_of_runs(batch, window)
        assert shared.steps.tolist() == steps
        assert shared.members.tolist() == members
        found += sum(steps)
    assert found > 0


def test_a_long_common_prefix_is_compared_in_several_passes() -> None:
    batch, _ = sharing([3000, 3000, 3000], [0, 2512, 2992], block_tokens=16)
    shared = find_shared(batch, SMALL, STEP)
    assert shared.steps.tolist() == [78, 78, 78]


def check(
    contexts: Sequence[int],
    links: Sequence[int],
    layout: HeadLayout = SMALL,
    scale: AttentionScale | None = None,
    dtype: torch.dtype = torch.float32,
    workers: int = 3,
) -> None:
    batch, num_blocks = sharing(contexts, links)
    cache = filled_cache(batch, num_blocks, layout, dtype)
    compute = torch.float16 if dtype.itemsize == 1 else dtype
    q = torch.randn(len(contexts), layout.num_heads, layout.head_dim).to(compute)
    scale = scale or AttentionScale(layout.head_dim**-0.5)
    real = without_padding(batch)
    rows = real.num_requests
    want = ReferenceKernels().attend(q[:rows].float(), layout, real, cache.float().nan_to_num(0.0), scale)
    kernels = CudaKernels(DecodeTiling(TILE, programs=workers * layout.num_kv_heads, prefix_tokens=STEP))
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    for _ in range(2):
        got = kernels.attend(q, layout, batch, cache, scale)
        torch.testing.assert_close(got[:rows].float(), want, rtol=tolerance, atol=tolerance)
        assert torch.all(got[rows:] == 0), "a padding row must be written, with zeros"


@pytest.mark.parametrize("workers", [2, 40])
@pytest.mark.parametrize(
    ("contexts", "links"),
    [
        ([150, 140, 180, 145], [0, 128, 139, 144]),
        ([200, 300, 200, 150], [0, 192, 128, 144]),
        ([200, 300, 150, 310, 320], [0, 192, 0, 128, 304]),
        ([129, 130, 200, 0, 0], [0, 128, 128, 0, 0]),
        ([400, 20, 400], [0, 0, 0]),
        ([160, 160], [0, 160]),
    ],
    ids=str,
)
def test_outputs_equal_the_twins(contexts: list[int], links: list[int], workers: int) -> None:
    check(contexts, links, workers=workers)


@pytest.mark.parametrize("layout", [PAIRS, HeadLayout(3, 1, 24), HeadLayout(2, 2, 64)], ids=str)
def test_layouts(layout: HeadLayout) -> None:
    check([150, 140, 180, 145, 160], [0, 139, 128, 144, 128], layout, workers=5)


def test_sinks_and_a_softcap_count_once() -> None:
    sinks = torch.tensor([-1.0, 0.0, 2.0, 5.0])
    check([200, 300, 150], [0, 192, 128], scale=AttentionScale(1.0, None, 4.0, sinks), workers=7)


def test_short_types() -> None:
    check([200, 300, 150], [0, 192, 128], dtype=torch.float16)
    check([200, 300, 150], [0, 192, 128], dtype=torch.float8_e4m3fn)


def test_a_window_reads_no_prefix() -> None:
    check([200, 300, 150], [0, 192, 128], scale=AttentionScale(0.25, window=50))
