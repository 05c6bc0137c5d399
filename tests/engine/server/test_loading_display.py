from __future__ import annotations

import io

import pytest
from rich.console import Console

from shoal_engine.messages import Loading
from shoal_engine.server.loading_display import LoadingDisplay

STEPS = [Loading("weights", done, 1000) for done in range(0, 1001, 10)]


def test_off_a_terminal_a_phase_takes_a_line_per_tenth(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    display = LoadingDisplay(Console(file=io.StringIO()))
    for loading in (Loading("starting"), Loading("starting"), *STEPS, Loading("warmup"), Loading("warmup")):
        display.show(loading)
    display.close()
    shown = [(record.__dict__["phase"], record.__dict__["done"]) for record in caplog.records]
    assert shown == [("starting", 0), *[("weights", done) for done in range(0, 1001, 100)], ("warmup", 0)]


def test_on_a_terminal_a_bar_says_how_much_there_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    screen = io.StringIO()
    display = LoadingDisplay(Console(file=screen, force_terminal=True, width=100))
    display.show(Loading("starting"))
    display.show(Loading("weights", 50_000_000, 97_000_000))
    display.close()
    assert "loading: weights" in screen.getvalue()
    assert "50 of 97 MB" in screen.getvalue()
    assert not caplog.records
