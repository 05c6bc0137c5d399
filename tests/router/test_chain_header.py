"""The chain of a prompt on its way to the engine."""

from __future__ import annotations

import base64
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_router.chain_header import chain_line


@settings(deadline=None)
@given(st.integers(0, 2**40), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40))
def test_engine_can_read_back_every_hash_and_the_size(size: int, chain: list[int]) -> None:
    line = chain_line(size, chain)
    assert line.startswith(b"x-shoal-chain: ")
    assert line.endswith(b"\r\n")
    told, _, text = line[len(b"x-shoal-chain: ") : -2].partition(b";")
    assert int(told) == size
    assert b"=" not in text
    data = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    assert list(struct.unpack(f">{len(chain)}Q", data)) == chain


def test_prompt_shorter_than_a_block_has_no_line() -> None:
    assert chain_line(100, []) == b""
