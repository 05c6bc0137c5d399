"""Ctrl-C, SIGTERM and a closed terminal as two events: the first asks to drain, the second to end at once."""

from __future__ import annotations

import asyncio
import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Handlers on the running loop, from construction on. `exit_code` is a shell's for the last signal."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.exit_code = 0
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._receive, number)

    def _receive(self, number: signal.Signals) -> None:
        self.exit_code = 128 + number
        if self.first.is_set():
            self.second.set()
        self.first.set()
