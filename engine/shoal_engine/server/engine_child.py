"""The engine process as its parent sees it: start it, know when it ends, end it. Knows nothing of what is
said to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import Sequence

from shoal_engine.heartbeat import Heartbeat

SOCKET_BUFFER_BYTES = 1 << 20


class EngineChild:
    """A running engine process, its heartbeat and our end of its socket."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket, heartbeat: Heartbeat) -> None:
        self.socket = sock
        self.heartbeat = heartbeat
        self._process = process
        # A thread that sleeps in waitpid: every platform has it, and it wakes the moment the child is gone.
        self._end = asyncio.ensure_future(asyncio.to_thread(process.wait))

    @classmethod
    def start(cls, command: Sequence[str]) -> EngineChild:
        """Run `command` with the descriptors of its socket and heartbeat appended as options."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        heartbeat = Heartbeat.create()
        with theirs:
            process = subprocess.Popen(
                [*command, f"--socket-fd={theirs.fileno()}", f"--heartbeat-fd={heartbeat.fd}"],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), heartbeat.fd),
            )
        return cls(process, ours, heartbeat)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """Its return code as Python reports it, negative for a signal."""
        return await asyncio.shield(self._end)

    async def end_within(self, seconds: float) -> int:
        """Wait for it to end by itself, then kill it."""
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self.wait(), seconds)
        self.kill()
        return await self.wait()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
