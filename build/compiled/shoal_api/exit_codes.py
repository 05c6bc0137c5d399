"""How `shoal serve` ends, as a number. The engine exits with these; the operator turns them into words and a back-off."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """0 and 2 are everybody's; from 128 on: 128 + N means that signal N killed the engine process."""

    STOPPED = 0  # somebody asked for it
    UNEXPECTED = 1  # a bug in the API process; the traceback is on stderr
    USAGE = 2  # the options were refused
    MODEL = 3  # the model cannot be served: missing, broken or of an unknown kind
    ENGINE_DIED = 4  # the engine process failed while computing; its traceback is on stderr
    OUT_OF_MEMORY = 5  # host or device memory was not enough, and freeing did not help
    DEVICE = 6  # the accelerator reported an error that only a new process gets rid of
    BAD_NUMBERS = 7  # the model computes NaN for every request
    STALLED = 8  # loading made no progress for too long
    ADDRESS = 9  # the port is taken, or the address is not this machine's


SIGNAL_BASE = 128


def of_returncode(returncode: int) -> int:
    """Python's return code of a child, negative for a signal, as the exit code that a shell would report."""
    return SIGNAL_BASE - returncode if returncode < 0 else returncode
