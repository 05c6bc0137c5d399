"""What has been asked for lately is remembered, and no more than that."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_router.recent_prefixes import RecentPrefixes


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 6))
def test_the_last_few_different_ones_are_known(asked: list[int], most: int) -> None:
    recent = RecentPrefixes(most)
    order: list[int] = []
    for prefix in asked:
        assert recent.note(prefix) == (prefix in order[-most:])
        order = [each for each in order if each != prefix] + [prefix]
        assert len(recent) == min(len(order), most)
