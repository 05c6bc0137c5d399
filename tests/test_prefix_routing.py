"""Requests that begin alike are served from cache: two real engines, a real router, twenty conversations."""

from __future__ import annotations

import pytest

from benchmarks.prefix_routing import run


@pytest.mark.timeout(280)
async def test_the_router_serves_ninety_percent_of_what_one_endless_cache_would() -> None:
    tallies = await run(replicas=2)
    assert tallies["router"].share >= 0.9
    assert tallies["router"].share > tallies["random"].share
