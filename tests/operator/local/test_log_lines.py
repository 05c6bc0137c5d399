"""JSON log lines of an engine as a person reads them."""

from __future__ import annotations

import pytest

from shoal_operator.local.log_lines import readable


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ('{"time": "t", "level": "info", "event": "ready", "device": "cpu", "seconds": 2.5}',
         ["ready  device=cpu  seconds=2.5"]),
        ('{"time": "t", "level": "warning", "event": "slow"}', ["warning: slow"]),
        ('{"level": "error", "event": "failed", "traceback": "Traceback:\\n  line 1"}',
         ["error: failed", "Traceback:", "  line 1"]),
        ('{"time": "t", "level": "info", "event": "loading", "done": 1}', []),
        ('{"answer": 42}', ['{"answer": 42}']),
        ('{"event": ', ['{"event": ']),
        ('["event"]', ['["event"]']),
        ("Traceback (most recent call last):", ["Traceback (most recent call last):"]),
        ("", [""]),
    ],
)  # fmt: skip
def test_events_become_text_and_everything_else_stays(line: str, shown: list[str]) -> None:
    assert readable(line) == shown
