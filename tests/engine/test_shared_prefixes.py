"""When a step of decodes is worth a search for common prefixes."""

from __future__ import annotations

import numpy as np
import pytest

from shoal_engine.shared_prefixes import neighbours_share


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
