"""Times as Kubernetes writes them (RFC 3339), from and to seconds since the epoch. Has no clock."""

from __future__ import annotations

from datetime import UTC, datetime


def seconds_of(text: object) -> float | None:
    """Seconds since the epoch; None for what is no time with a zone."""
    if not isinstance(text, str):
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if time.tzinfo is None else time.timestamp()


def rfc3339(seconds: float) -> str:
    """Whole seconds, UTC, as metav1.Time: 2026-01-31T12:00:00Z."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
