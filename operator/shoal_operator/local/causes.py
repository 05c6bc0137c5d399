"""What the end of an engine or router process means, in words for the person at the terminal. Pure."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from shoal_api.exit_codes import SIGNAL_BASE, ExitCode, of_returncode


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a process died. `text` continues "NAME ..."; `permanent`: another start would end the same way."""

    text: str
    last_lines: tuple[str, ...] = ()
    permanent: bool = False


def cause_of(returncode: int, last_lines: Sequence[str], fault: str | None = None) -> Cause:
    """`returncode` as Python reports it, negative for a signal; `fault`: why we killed it ourselves."""
    lines = tuple(last_lines)
    if fault is not None:
        return Cause(fault, lines)
    code = of_returncode(returncode)
    if code > SIGNAL_BASE:
        whose = "was" if returncode < 0 else "lost its engine process, which was"
        return Cause(f"{whose} killed by {_signal(code - SIGNAL_BASE)}", lines)
    meaning, permanent = _MEANINGS.get(code, ("", False))
    return Cause(f"exited with code {code}" + (f" ({meaning})" if meaning else ""), lines, permanent)


# Exit code -> meaning, and whether the same command would end the same way again.
_MEANINGS: dict[int, tuple[str, bool]] = {
    ExitCode.STOPPED: ("nobody asked it to stop", False),
    ExitCode.UNEXPECTED: ("an unexpected error", False),
    ExitCode.USAGE: ("it refused its options", True),
    ExitCode.MODEL: ("the model cannot be served", True),
    ExitCode.ENGINE_DIED: ("its engine process failed", False),
    ExitCode.OUT_OF_MEMORY: ("out of memory: use fewer replicas or a smaller kvCacheMemoryBytes", False),
    ExitCode.DEVICE: ("the accelerator failed", False),
    ExitCode.BAD_NUMBERS: ("the model computes NaN", False),
    ExitCode.STALLED: ("loading made no progress", False),
    ExitCode.ADDRESS: ("its port is taken", False),
}

_SIGNAL_HINTS = {
    signal.SIGKILL: "often the kernel, out of memory: use fewer replicas or a smaller kvCacheMemoryBytes",
    signal.SIGSEGV: "a crash in native code",
    signal.SIGILL: "a library uses an instruction that this processor lacks",
    signal.SIGBUS: "its model file changed or its disk failed while it was being read",
}


def _signal(number: int) -> str:
    try:
        known = signal.Signals(number)
    except ValueError:
        return f"signal {number}"
    hint = _SIGNAL_HINTS.get(known)
    return f"{known.name} ({hint})" if hint else known.name
