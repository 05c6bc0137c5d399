"""A ratio says how many times better, whichever way the unit runs; records survive the file between two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from figures import Figure, append, full_record, read_figures, table
from published import published


def rate(value: float, floor: float | None = None, engine: str = "shoal") -> Figure:
    return Figure(engine, "Llama-3.1-8B", False, "B", "tok/s", value, floor)


def test_twice_the_rate_and_half_the_time_are_both_twice_as_good() -> None:
    time = Figure("shoal", "Llama-3.1-8B", False, "C batch 1", "ms", 2.0, 1.0)
    assert rate(200.0).better_than(100.0) == time.better_than(4.0) == 2.0
    assert (rate(50.0, 100.0).fraction, time.fraction) == (0.5, 0.5)
    assert rate(1.0).better_than(None) is None


def test_a_record_holds_every_comparison() -> None:
    record = full_record(rate(9_342.0, 12_456.0), [rate(4_671.0, engine="vllm")])
    assert record["published_vllm"] == 6_228
    assert record["ratio_to_published_vllm"] == pytest.approx(1.5)
    assert record["ratio_to_measured_vllm"] == pytest.approx(2.0)
    assert record["fraction_of_floor"] == pytest.approx(0.75)


def test_figures_come_back_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    assert read_figures(path) == []
    written = [rate(1.5, 2.0), Figure("shoal", "tiny", True, "ttft", "ms", 3.0, None, {"steps": 4})]
    for figure in written:
        append(path, figure)
    assert read_figures(path) == written


def test_the_table_says_whether_a_goal_is_met() -> None:
    lines = table([rate(8_000.0, 7_925.0), rate(7_000.0)], []).splitlines()
    assert lines[1].split() == ["B", "8,000", "tok/s", "7,925", "101%", "6,228", "1.28", "7,500", "yes"]
    assert lines[2].endswith("no")


def test_what_was_not_published_is_empty() -> None:
    assert published("tiny", False, "A") == (None, None)
    assert published("Llama-3.1-8B", True, "C batch 1").vllm == 3.62
