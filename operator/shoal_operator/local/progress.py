"""What the person at the terminal sees: one line per process while loading, then its log lines.

On a terminal a block of bars is redrawn in place and lines scroll above it; elsewhere (a file, CI) each
step is one plain line, written only when it says something new.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shoal_operator.local.causes import Cause
from shoal_operator.local.log_lines import readable
from shoal_operator.local.replica_state import ReplicaState, State

QUIET_S = 10.0  # a plain line at least this often while a count moves
_COLOURS = ("cyan", "magenta", "blue", "green", "yellow", "bright_cyan", "bright_magenta", "bright_blue")


class Terminal:
    """Use as a context. `names` fixes the width of the prefix and the order of the lines."""

    def __init__(
        self, console: Console, names: Sequence[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._clock = clock
        self._colours = {name: _COLOURS[n % len(_COLOURS)] for n, name in enumerate(names)}
        self._width = max((len(name) for name in names), default=0)
        self._states: dict[str, ReplicaState | None] = dict.fromkeys(names)
        self._printed: dict[str, tuple[ReplicaState, float]] = {}
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(
                get_renderable=self._table, console=console, refresh_per_second=8, transient=True
            )

    def __enter__(self) -> Terminal:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_progress()

    def end_progress(self) -> None:
        """Take the bars away; from here on changes are plain lines."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def progress(self, state: ReplicaState) -> None:
        self._states[state.name] = state
        if self._live is not None:
            return
        now_s = self._clock()
        printed, printed_at_s = self._printed.get(state.name, (None, now_s))
        if worth_a_line(printed, state, now_s - printed_at_s):
            self._printed[state.name] = state, now_s
            self._print(state.name, Text(describe(state, now_s)))

    def line(self, name: str, text: str) -> None:
        for shown in readable(text):
            self._print(name, Text(printable(shown)))

    def died(self, name: str, cause: Cause, delay_s: float) -> None:
        self.failure(name, cause, f"starting it again in {delay_s:.0f} s")

    def failure(self, name: str, cause: Cause, then: str) -> None:
        """Why `name` died, its last words, and what happens next."""
        self._print(name, Text(f"{cause.text}; {then}", style="bold red"))
        for text in cause.last_lines:
            for shown in readable(text):
                self._print(name, Text(f"  | {printable(shown)}", style="red"))

    def say(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _print(self, name: str, text: Text) -> None:
        prefix = (f"{name:<{self._width}}  ", self._colours[name])
        self._console.print(Text.assemble(prefix, text), soft_wrap=True)

    def _table(self) -> Table:
        """One row per process: name, state, bar, figures."""
        table = Table.grid(padding=(0, 2))
        now_s = self._clock()
        for name, state in self._states.items():
            if state is None:
                continue
            table.add_row(Text(name, style=self._colours[name]), _bar(state, now_s), describe(state, now_s))
        return table


def describe(state: ReplicaState, now_s: float) -> str:
    """One line on where a process is: "loading weights, 61.2 of 98.9 MB (62 %), 3 s left"."""
    if state.state is not State.LOADING or not state.phase:
        return str(state.state)
    parts = [f"{state.state} {state.phase}"]
    fraction, remaining_s = state.fraction, state.remaining_s(now_s)
    if fraction is not None:
        counts = (
            amounts(state.done, state.total) if state.phase == "weights" else f"{state.done} of {state.total}"
        )
        parts.append(f"{counts} ({fraction:.0%})".replace("%", " %"))
        if remaining_s is not None and fraction < 1:
            parts.append(f"{duration(remaining_s)} left")
    return ", ".join(parts)


def worth_a_line(printed: ReplicaState | None, state: ReplicaState, silent_s: float) -> bool:
    """Whether a plain log needs a line: a new phase, another quarter done, or QUIET_S without one."""
    if state.state is State.DRAINING:
        return False  # is said once for all, and by each process itself
    if printed is None or not state.follows(printed):
        return True
    return silent_s >= QUIET_S or int(4 * (state.fraction or 0)) > int(4 * (printed.fraction or 0))


def amounts(done: int, total: int) -> str:
    """Bytes as "61.2 of 98.9 MB", both in the unit that suits the total."""
    size, unit = next((size, unit) for size, unit in _UNITS if total >= size)
    return f"{done / size:.1f} of {total / size:.1f} {unit}"


def duration(seconds: float) -> str:
    """ "8 s", "3 min 20 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def printable(text: str) -> str:
    """A child's line without the control characters that would move our cursor or recolour the terminal."""
    return "".join(c if c == "\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B"))


def _bar(state: ReplicaState, now_s: float) -> ProgressBar:
    """Full when ready, moving while there is no count."""
    fraction = 1.0 if state.state is State.READY else state.fraction
    busy = fraction is None and state.state in (State.STARTING, State.LOADING)
    return ProgressBar(total=1.0, completed=fraction or 0.0, width=24, pulse=busy, animation_time=now_s)
