"""`--processes N`: worker processes behind one port, each a whole router. Starts, restarts and ends them; routes nothing.

Workers are forked from a parent that has no event loop and no threads, and share the port by SO_REUSEPORT: the kernel
deals connections out. They agree as routers on different machines do, without talking to one another.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from types import FrameType
from typing import Final

from shoal_api.exit_codes import ExitCode, of_returncode

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
STEADY_S: Final = 30.0  # a worker that has lived so long is started at once when it dies
FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
FINAL: Final = (ExitCode.USAGE, ExitCode.ADDRESS)  # another try ends in the same way
_PR_SET_PDEATHSIG: Final = 1


def hold_port(host: str, port: int) -> socket.socket:
    """A socket that keeps `port` (0: a free one) for workers that share it. Raises OSError when somebody else listens."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    # Sharing would also succeed beside a stranger of the same user: ask first without it.
    with socket.socket(family, kind, protocol) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind(address)
        address = (address[0], alone.getsockname()[1], *address[2:])
    held = socket.socket(family, kind, protocol)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(address)
    return held


class Workers:
    """`work(number)` runs one worker in a process of its own and returns its exit code."""

    def __init__(self, count: int, work: Callable[[int], int]) -> None:
        self._count = count
        self._work = work
        self._running: dict[int, tuple[ForkProcess, float]] = {}  # number -> process, when it was started
        self._due: dict[int, float] = {}  # number -> when to start it again
        self._pauses: dict[int, float] = {}
        self._stopping = False
        self._code = int(ExitCode.STOPPED)

    def run(self) -> int:
        """Run all workers until a signal; the exit code is that of the first worker that did not end well."""
        for each in FORWARDED:
            signal.signal(each, self._forward)
        for number in range(self._count):
            self._start(number)
        while self._running or self._due:
            now = time.monotonic()
            for number in [number for number, at in self._due.items() if at <= now]:
                del self._due[number]
                self._start(number)
            pause_s = min(self._due.values(), default=now + 60.0) - now
            wait([process.sentinel for process, _ in self._running.values()], min(max(0.0, pause_s), 1.0))
            for number, (process, started_s) in list(self._running.items()):
                if process.exitcode is not None:
                    del self._running[number]
                    self._ended(number, process.exitcode, time.monotonic() - started_s)
        return self._code

    def _start(self, number: int) -> None:
        process = multiprocessing.get_context("fork").Process(target=self._child, args=(number,))
        process.start()
        self._running[number] = process, time.monotonic()
        if self._stopping and process.pid is not None:  # the signal came while it was being started
            os.kill(process.pid, signal.SIGTERM)

    def _child(self, number: int) -> None:
        for each in FORWARDED:
            signal.signal(each, signal.SIG_DFL)
        os.setpgrp()  # Ctrl-C is the parent's to pass on: twice would end the drain
        if sys.platform == "linux":  # else workers outlive a parent that is killed
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        raise SystemExit(self._work(number))

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGUSR1:
            self._stopping = True
            self._due.clear()
        for process, _ in self._running.values():
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, number)

    def _ended(self, number: int, returncode: int, lived_s: float) -> None:
        code = of_returncode(returncode)
        if self._stopping:
            asked = returncode in (0, -signal.SIGTERM, -signal.SIGINT)
            self._code = self._code or (0 if asked else code)
        elif code in FINAL:
            self._code = code
            self._forward(signal.SIGTERM, None)
        else:
            pause_s = 0.0 if lived_s >= STEADY_S else self._pauses.get(number, FIRST_PAUSE_S)
            self._pauses[number] = min(max(2 * pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            self._due[number] = time.monotonic() + pause_s
            log.error("worker %d ended with code %d; it starts again in %g s", number, code, pause_s)
