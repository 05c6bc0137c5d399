"""Processes of pods, found in this machine's process table: what a SIGKILL needs that no kubectl can give.

A cluster on other machines has none of them here; a scenario that needs one is then skipped.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest


def pids_of(pod_uid: str, words: str) -> list[int]:
    """Processes of that pod whose command line has `words`, parents first. Skips the test when there is none."""
    names = (pod_uid, pod_uid.replace("-", "_"))  # the second is how systemd spells it
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            groups = (process / "cgroup").read_text()
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        if any(name in groups for name in names) and words in command:
            found.append(int(process.name))
    if not found:
        pytest.skip("the pod's processes are not on this machine")
    return sorted(found)


def kill(pids: list[int]) -> None:
    """SIGKILL to each, at once."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
