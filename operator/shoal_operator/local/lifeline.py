"""Kill the children when their parent vanishes: a companion process that waits at the other end of a pipe.

A parent that gets SIGKILL can clean up nothing itself, but the kernel closes its pipes. The companion then
reads EOF and kills every process group it was told of, so also what a child has started. Works on any POSIX
system; not a supervisor: it neither starts nor watches anything.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from types import TracebackType


class Lifeline:
    """The parent's end. Children must lead their own process group; its id is their pid."""

    def __init__(self) -> None:
        # -I -S: no site packages, no user environment; it starts in 10 ms and depends on nothing.
        self._companion = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal must not reach it
        )

    def watch(self, group: int) -> None:
        """From now on `group` dies with this process."""
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """`group` is gone: its id may soon belong to a stranger."""
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """End the companion; it kills what is still being watched. Returns when that has happened."""
        assert self._companion.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._companion.stdin.close()
        self._companion.wait()

    def _tell(self, line: str) -> None:
        assert self._companion.stdin is not None
        # Without its companion the parent still stops its children itself: only its own SIGKILL would leave
        # them.
        with contextlib.suppress(BrokenPipeError):
            self._companion.stdin.write(line.encode())
            self._companion.stdin.flush()

    def __enter__(self) -> Lifeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def kill_group(group: int) -> None:
    """SIGKILL every process of the group; one that has already gone is fine."""
    # macOS answers EPERM for a group of zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _companion() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        kill_group(group)


if __name__ == "__main__":
    _companion()
