"""How far loading has come, for whoever started the server: a bar on a terminal, a log line per tenth
elsewhere.
"""

from __future__ import annotations

import logging

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

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
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bars = Progress(*columns, console=console, transient=True)
            self._bars.start()

    def show(self, loading: Loading) -> None:
        if self._bars is not None:
            if self._bar is None or self._shown is None or self._shown[0] != loading.phase:
                self._bar = self._bars.add_task(f"loading {loading.phase}", total=None)
            self._bars.update(self._bar, completed=loading.done, total=loading.total or None)
            self._shown = (loading.phase, 0)
            return
        step = (loading.phase, STEPS * loading.done // loading.total if loading.total else 0)
        if step != self._shown:
            self._shown = step
            log.info("loading", extra={"phase": loading.phase, "done": loading.done, "total": loading.total})

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
