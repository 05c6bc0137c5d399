"""Percentiles against numpy's, and what failed requests do not count in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_engine.bench.client import Answer
from shoal_engine.bench.latencies import Summary, percentile


@settings(deadline=None)  # numpy is slow to start
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), abs=1e-6)


def test_no_value_has_no_percentile() -> None:
    with pytest.raises(ValueError):
        percentile([], 50)


def test_latencies_and_rates_of_known_answers() -> None:
    quick = Answer(events_s=[0.1, 0.2, 0.4], prompt_tokens=10, cached_tokens=5, output_tokens=4, end_s=0.5)
    single = Answer(events_s=[0.3], prompt_tokens=10, output_tokens=1, end_s=0.3)
    failed = Answer(events_s=[9.0], output_tokens=7, end_s=9.0, error="HTTP 429: full")
    summary = Summary([quick, single, failed], seconds=2.0)
    assert summary.rates() == {"requests_per_s": 1.0, "total_tokens_per_s": 12.5, "output_tokens_per_s": 2.5}
    assert summary.values_ms("ttft_ms") == pytest.approx([100.0, 300.0])
    assert summary.values_ms("tpot_ms") == pytest.approx(
        [100.0]
    )  # 0.3 s for the three tokens after the first
    assert summary.values_ms("itl_ms") == pytest.approx([100.0, 200.0])
    assert summary.values_ms("e2e_ms") == pytest.approx([500.0, 300.0])
    assert summary.record()["failures"] == {"HTTP 429: full": 1}
    assert "1 failed: HTTP 429: full" in str(summary)
    assert "20 prompt tokens (25% cached)" in str(summary)


def test_when_everything_failed_there_are_no_latencies() -> None:
    summary = Summary([Answer(error="ConnectError")], seconds=1.0)
    assert summary.latencies() == {}
    assert summary.rates()["output_tokens_per_s"] == 0.0
    assert "1 failed: ConnectError" in str(summary)
