"""The byte chain of the router: every router finds the same hashes without sharing a store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_api.request_prefix import BLOCK_BYTES, hash_request, request_chain_start

VECTORS = json.loads((Path(__file__).parent / "vectors" / "request_chain.json").read_text())
START = request_chain_start("model")

contents = st.binary(max_size=5 * BLOCK_BYTES)


@pytest.mark.parametrize("case", VECTORS, ids=[case["name"] for case in VECTORS])
def test_hashes_are_those_of_the_published_vectors(case):
    start = request_chain_start(case["model"], case["adapter"], case["salt"])
    assert f"{start:016x}" == case["start"]
    hashes = hash_request(case["content"].encode() * case["repeat"], start)
    assert [f"{each:016x}" for each in hashes] == case["hashes"]


@given(contents, contents)
def test_a_longer_conversation_keeps_the_hashes_of_its_beginning(head, tail):
    begun = hash_request(head, START)
    assert hash_request(head + tail, START)[: len(begun)] == begun


@given(contents)
def test_a_partial_block_has_no_hash(content):
    assert len(hash_request(content, START)) == len(content) // BLOCK_BYTES


@given(st.binary(min_size=BLOCK_BYTES, max_size=5 * BLOCK_BYTES))
def test_model_adapter_and_salt_each_separate_chains(content):
    starts = [request_chain_start(*names) for names in (("m",), ("n",), ("m", "a"), ("m", "", "a"), ("ma",))]
    chains = [hash_request(content, start) for start in starts]
    assert len({chain[0] for chain in chains}) == len(chains)


@given(st.binary(min_size=BLOCK_BYTES, max_size=BLOCK_BYTES))
def test_equal_blocks_at_different_places_have_different_hashes(block):
    first, second = hash_request(block * 2, START)
    assert first != second


def test_hashes_are_unsigned_64_bit():
    assert all(0 <= each < 2**64 for each in hash_request(bytes(4096), START))
