"""When a step of decodes is worth a search for common prefixes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from shoal_engine.batch import BatchBuilder
from shoal_engine.blocks import BlockPool
from shoal_engine.limits import SchedulerLimits
from shoal_engine.request import Request
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.scheduler import Scheduler
from shoal_engine.shared_prefixes import family, neighbours_share


def batch_of(
    count: int, common_tokens: int, context: int, block_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tables and lengths of decodes that have their first tokens in common, as far as whole blocks go."""
    blocks = -(-context // block_tokens)
    tables = np.arange(1, count * blocks + 1, dtype=np.int32).reshape(count, blocks)
    tables[:, : common_tokens // block_tokens] = tables[0, : common_tokens // block_tokens]
    return tables, np.full(count, context, dtype=np.int32)


@pytest.mark.parametrize("block_tokens", [16, 64, 256, 512])
def test_many_decodes_with_one_prefix_share(block_tokens: int) -> None:
    tables, lengths = batch_of(40, 1024, 1200, block_tokens)
    assert neighbours_share(tables, lengths, 40, block_tokens)
    assert not neighbours_share(tables, lengths, 2, block_tokens), "one pair saves 1024 tokens"
    assert not neighbours_share(*batch_of(40, 0, 1200, block_tokens), 40, block_tokens)


def test_a_short_prefix_is_not_worth_it() -> None:
    assert not neighbours_share(*batch_of(40, 240, 1200, 16), 40, 16)
    assert neighbours_share(*batch_of(17, 256, 1200, 16), 17, 16)
    assert not neighbours_share(*batch_of(16, 256, 1200, 16), 16, 16)


def test_few_decodes_share_a_long_prefix() -> None:
    assert neighbours_share(*batch_of(2, 4096, 5000, 16), 2, 16)
    assert neighbours_share(*batch_of(3, 2048, 2100, 16), 3, 16)
    assert not neighbours_share(*batch_of(2, 4095, 5000, 16), 2, 16)
    assert not neighbours_share(*batch_of(1, 4096, 5000, 16), 1, 16)


def test_only_decodes_count() -> None:
    assert not neighbours_share(*batch_of(40, 1024, 1200, 16), 4, 16)


def test_padding_of_short_tables_is_no_common_block() -> None:
    tables, lengths = np.zeros((40, 100), dtype=np.int32), np.full(40, 200, dtype=np.int32)
    assert not neighbours_share(tables, lengths, 40, 16)
    assert not neighbours_share(tables[:, :5], lengths, 40, 16)


@pytest.mark.parametrize(
    ("blocks", "block_tokens", "deep"),
    [(15, 16, ()), (16, 16, (16,)), (40, 16, (16, 32)), (3, 512, (1, 1, 2)), (0, 16, ())],
)
def test_a_family_is_told_by_the_blocks_at_doubling_depths(
    blocks: int, block_tokens: int, deep: tuple[int, ...]
) -> None:
    assert family(list(range(1, blocks + 1)), block_tokens) == deep


def test_families_that_arrive_mixed_decode_as_neighbours_and_stay_so() -> None:
    limits = SchedulerLimits(
        max_num_seqs=64, max_num_batched_tokens=4096, max_model_len=2048, block_tokens=16
    )
    scheduler = Scheduler(limits, BlockPool(4000))
    heads = [[100 + i] * 512 for i in range(3)]
    params = SamplingParams(max_tokens=9, ignore_eos=True)
    for i in range(18):
        scheduler.add(Request(f"r{i}", [*heads[i % 3], i, i, i], params, float(i)))
    builder, seen = BatchBuilder(64, 128, 16), []
    for _ in range(6):
        plan = scheduler.schedule()
        if plan.num_decodes == 18:
            host = builder.build(plan, {})
            assert neighbours_share(host.tables, host.context_lens, 18, 16)
            seen.append([int(chunk.request.id[1:]) % 3 for chunk in plan.chunks])
        scheduler.commit(plan, [7] * plan.num_samples)
    assert len(seen) > 2
    for order in seen:
        assert sum(a != b for a, b in pairwise(order)) == 2
        assert order == seen[0]
