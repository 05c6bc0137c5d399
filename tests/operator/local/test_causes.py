"""What is said of a process that ended."""

from __future__ import annotations

import signal

import pytest

from shoal_api.exit_codes import ExitCode
from shoal_operator.local.causes import cause_of


@pytest.mark.parametrize(
    ("returncode", "fault", "expected"),
    [
        (0, None, "exited with code 0 (nobody asked it to stop)"),
        (77, None, "exited with code 77"),
        (1, None, "exited with code 1 (an unexpected error)"),
        (-signal.SIGKILL, None, "was killed by SIGKILL (often the kernel, out of memory"),
        (-signal.SIGTERM, None, "was killed by SIGTERM"),
        (128 + signal.SIGSEGV, None, "lost its engine process, which was killed by SIGSEGV"),
        (-63, None, "was killed by signal 63"),
        (-signal.SIGKILL, "did not answer", "did not answer"),
    ],
)
def test_cause_names_code_or_signal_and_our_own_reason_first(
    returncode: int, fault: str | None, expected: str
) -> None:
    cause = cause_of(returncode, ["last words"], fault)
    assert cause.text.startswith(expected)
    assert cause.last_lines == ("last words",)
    assert not cause.permanent


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_code_of_the_engine_has_words_and_only_input_errors_are_permanent(code: ExitCode) -> None:
    cause = cause_of(code, [])
    assert cause.text.startswith(f"exited with code {code.value} (")
    assert cause.permanent == (code in (ExitCode.USAGE, ExitCode.MODEL))
