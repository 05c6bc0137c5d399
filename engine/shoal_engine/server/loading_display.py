"""How far loading has come, for whoever started the server: a bar on a terminal, a log line per tenth elsewhere."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from shoal_engine.messages import Loading

log = logging.getLogger(__name__)
STEPS = 10  # log lines per phase at most


class LoadingDisplay:
    """Give it every Loading; close it when loading is over, whatever the outcome."""

    def __init__(self, console: Console) -> None:
        self._shown: tuple[str, int] | None = None
        self._bars: Progress | None = None
        self._bar: TaskID | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"))
            self._bars = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
            self._bars.start()

    def show(self, loading: Loading) -> None:
        step = (loading.phase, STEPS * loading.done // loading.total if loading.total else 0)
        news, self._shown = step != self._shown, step
        if self._bars is not None:
            self._draw(self._bars, loading)
        elif news:
            log.info("loading", extra={"phase": loading.phase, "done": loading.done, "total": loading.total})

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()

    def _draw(self, bars: Progress, loading: Loading) -> None:
        if self._bar is None:
            self._bar = bars.add_task("", amount="")
        bars.update(
            self._bar,
            description=f"loading: {loading.phase}",
            completed=loading.done,
            total=loading.total or None,  # unknown: the bar only moves
            amount=f"{loading.done / 1e6:.0f} of {loading.total / 1e6:.0f} MB" if loading.total else "",
        )
