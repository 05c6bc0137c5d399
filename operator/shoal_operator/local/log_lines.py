"""An engine's log line as a person reads it. Pure.

Engines log JSON objects where nobody watches them, as under `shoal up`: time, level, event and its facts.
"""

from __future__ import annotations

import json

QUIET_EVENTS = ("loading", "stopped")  # are shown as progress already


def readable(line: str) -> list[str]:
    """`line` as lines for the terminal: none for an event that is shown otherwise; other text as it is."""
    entry = _parse(line)
    if entry is None:
        return [line]
    if entry["event"] in QUIET_EVENTS:
        return []
    level = "" if entry.get("level") in (None, "info") else f"{entry['level']}: "
    facts = [f"{name}={value}" for name, value in entry.items() if name not in _ELSEWHERE]
    return ["  ".join([f"{level}{entry['event']}", *facts]), *str(entry.get("traceback", "")).splitlines()]


_ELSEWHERE = frozenset({"time", "level", "event", "traceback"})


def _parse(line: str) -> dict[str, object] | None:
    if not line.startswith("{"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "event" in entry else None
