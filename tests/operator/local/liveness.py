"""Whether processes of this machine still run; for tests that start real ones."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

WAIT_S = 10.0


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_gone(pids: Iterable[int]) -> None:
    """Fails if one of them lives on."""
    pids = list(pids)
    deadline_s = time.monotonic() + WAIT_S
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline_s, f"still running: {[pid for pid in pids if alive(pid)]}"
        time.sleep(0.02)
