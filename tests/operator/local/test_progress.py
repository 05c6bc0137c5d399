"""What the terminal shows: lines for a file, a block for a terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from shoal_operator.local.causes import Cause
from shoal_operator.local.progress import QUIET_S, Terminal, describe, printable, worth_a_line
from shoal_operator.local.replica_state import ReplicaState, State

LOADING = ReplicaState(
    "a-0", State.LOADING, since_s=10.0, phase="weights", done=25_000_000, total=100_000_000
)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (LOADING, "loading weights, 25.0 of 100.0 MB (25 %), 6 s left"),
        (
            replace(LOADING, total=200 * 10**9, done=10**9),
            "loading weights, 1.0 of 200.0 GB (0 %), 6 min 38 s left",
        ),
        (replace(LOADING, done=0), "loading weights, 0.0 of 100.0 MB (0 %)"),
        (replace(LOADING, total=0), "loading weights"),
        (replace(LOADING, phase="warmup", done=3, total=4), "loading warmup, 3 of 4 (75 %), 1 s left"),
        (replace(LOADING, done=100_000_000), "loading weights, 100.0 of 100.0 MB (100 %)"),
        (replace(LOADING, state=State.READY), "ready"),
    ],
)
def test_description_gives_phase_amount_and_time_left(state: ReplicaState, expected: str) -> None:
    assert describe(state, now_s=12.0) == expected


@pytest.mark.parametrize(
    ("printed", "state", "silent_s", "expected"),
    [
        (None, LOADING, 0.0, True),
        (LOADING, replace(LOADING, done=49_000_000), 1.0, False),
        (LOADING, replace(LOADING, done=50_000_000), 1.0, True),
        (LOADING, replace(LOADING, done=26_000_000), QUIET_S, True),
        (LOADING, replace(LOADING, phase="warmup"), 0.0, True),
        (LOADING, replace(LOADING, state=State.READY, phase=""), 0.0, True),
        (LOADING, replace(LOADING, state=State.DRAINING, phase=""), QUIET_S, False),
    ],
)
def test_plain_log_gets_a_line_per_phase_quarter_or_quiet_time(
    printed: ReplicaState | None, state: ReplicaState, silent_s: float, expected: bool
) -> None:
    assert worth_a_line(printed, state, silent_s) is expected


def test_plain_lines_carry_the_name_and_are_never_wrapped_or_coloured() -> None:
    out = io.StringIO()
    with Terminal(Console(file=out, width=40), ["a-0", "router"], clock=lambda: 12.0) as terminal:
        terminal.progress(LOADING)
        terminal.line("router", "x" * 200)
        terminal.died("a-0", Cause("exited with code 3", ("no such file", "bye")), delay_s=2)
    assert out.getvalue().splitlines() == [
        "a-0     loading weights, 25.0 of 100.0 MB (25 %), 6 s left",
        "router  " + "x" * 200,
        "a-0     exited with code 3; starting it again in 2 s",
        "a-0       | no such file",
        "a-0       | bye",
    ]


def test_terminal_shows_a_coloured_line_per_process_and_logs_above_it() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system="standard")
    with Terminal(console, ["a-0", "router"], clock=lambda: 12.0) as terminal:
        terminal.progress(LOADING)
        terminal.progress(ReplicaState("router", State.READY, 11.0))
        terminal.line("a-0", "log line")
    shown = out.getvalue()
    assert "loading weights, 25.0 of 100.0 MB (25 %), 6 s left" in shown
    assert "━" in shown
    assert "\x1b[36ma-0     \x1b[0mlog line" in shown


def test_control_characters_of_a_child_never_reach_the_terminal() -> None:
    assert printable("a\tb\x1b[2Jc\rd é") == "a\tb�[2Jc�d é"
