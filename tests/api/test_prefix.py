"""The token chain: one definition for every replica, pinned by vectors that other languages can check too."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_api.prefix import block_hash, chain_start, hash_blocks

VECTORS = json.loads((Path(__file__).parent / "vectors" / "token_chain.json").read_text())
ADAPTER = hashlib.sha256(b"adapter").digest()

token_ids = st.lists(st.integers(0, 2**31 - 1), max_size=200)
block_sizes = st.sampled_from([1, 2, 4, 16, 64])


@pytest.mark.parametrize("case", VECTORS, ids=[case["name"] for case in VECTORS])
def test_hashes_are_those_of_the_published_vectors(case):
    adapter = bytes.fromhex(case["adapter_digest"]) if case["adapter_digest"] else None
    hashes = hash_blocks(case["token_ids"], case["block_tokens"], case["cache_salt"], adapter)
    assert [each.hex() for each in hashes] == case["hashes"]


def test_a_block_hash_is_sha256_of_parent_tokens_and_adapter_as_documented():
    start = hashlib.sha256(
        b"shoal.dev/kv-block/1" + struct.pack("<I", 2) + b"\x01" + struct.pack("<I", 4) + b"salt"
    )
    first = hashlib.sha256(start.digest() + struct.pack("<2i", 7, 70_000) + b"\x02" + ADAPTER)
    assert hash_blocks([7, 70_000], 2, "salt", ADAPTER) == [first.digest()]


@given(token_ids, block_sizes, st.integers(0, 200))
def test_a_prefix_of_the_tokens_has_a_prefix_of_the_hashes(tokens, block, cut):
    whole, part = hash_blocks(tokens, block), hash_blocks(tokens[:cut], block)
    assert whole[: len(part)] == part


@given(token_ids, block_sizes)
def test_a_partial_block_has_no_hash(tokens, block):
    assert len(hash_blocks(tokens, block)) == len(tokens) // block


@given(token_ids.filter(bool), block_sizes, st.integers(0, 199), st.integers(0, 2**31 - 1))
def test_a_changed_token_changes_its_block_and_all_behind_it_and_none_before(tokens, block, position, other):
    position %= len(tokens)
    changed = [*tokens[:position], other, *tokens[position + 1 :]]
    same = [a == b for a, b in zip(hash_blocks(tokens, block), hash_blocks(changed, block), strict=True)]
    expected = [
        other == tokens[position] or index < position // block for index in range(len(tokens) // block)
    ]
    assert same == expected


@given(token_ids, st.text(min_size=1), st.text(min_size=1))
def test_chains_of_two_salts_share_no_hash(tokens, salt, other):
    if salt != other:
        assert not set(hash_blocks(tokens, 4, salt)) & set(hash_blocks(tokens, 4, other))
    assert not set(hash_blocks(tokens, 4, salt)) & set(hash_blocks(tokens, 4))


@given(token_ids)
def test_chains_with_another_adapter_share_no_hash(tokens):
    other = hashlib.sha256(b"the same name, other weights").digest()
    chains = [hash_blocks(tokens, 4, None, adapter) for adapter in (None, ADAPTER, other)]
    assert len(set().union(*chains)) == sum(map(len, chains))


@given(token_ids, block_sizes, st.none() | st.text(), st.sampled_from([None, ADAPTER]))
def test_block_by_block_gives_the_same_chain_as_all_at_once(tokens, block, salt, adapter):
    parent, chain = chain_start(block, salt), []
    for begin in range(0, len(tokens) - block + 1, block):
        parent = block_hash(parent, tokens[begin : begin + block], adapter)
        chain.append(parent)
    assert chain == hash_blocks(tokens, block, salt, adapter)


def test_block_sizes_never_meet():
    assert not set(hash_blocks([0] * 64, 16)) & set(hash_blocks([0] * 64, 32))


def test_no_salt_and_an_empty_salt_are_the_same():
    assert chain_start(16, None) == chain_start(16, "")


def test_a_salt_of_broken_unicode_is_hashed_like_any_other():
    assert chain_start(16, "\ud800") != chain_start(16, "\ud801")


@pytest.mark.parametrize("token", [2**31, -(2**31) - 1])
def test_a_token_outside_int32_is_refused(token):
    with pytest.raises(OverflowError):
        block_hash(chain_start(1), [token])


def test_an_adapter_digest_of_another_length_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        hash_blocks([1], 1, adapter_digest=b"name-of-adapter")
