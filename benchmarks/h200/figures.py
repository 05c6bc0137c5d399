"""One measured number with what it is compared to; printed as a table, kept as JSON lines. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from published import published

RATES = frozenset({"tok/s"})  # more is better; of every other unit less is


@dataclass(frozen=True)
class Figure:
    """`floor` is the best that the card's ceilings allow, in the same unit; None = no such bound is known."""

    engine: str
    model: str
    fp8: bool
    name: str
    unit: str
    value: float
    floor: float | None = None
    details: dict[str, float | str] = field(default_factory=dict)

    def better_than(self, other: float | None) -> float | None:
        """How many times as good as `other`: 2 is twice the rate, or half the time."""
        if not other or not self.value:
            return None
        return self.value / other if self.unit in RATES else other / self.value

    @property
    def fraction(self) -> float | None:
        """Of the floor that is reached; 1 is the limit of the card."""
        return self.better_than(self.floor)


def read_figures(path: Path) -> list[Figure]:
    return [Figure(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, figure: Figure) -> None:
    with path.open("a") as file:
        print(json.dumps(asdict(figure)), file=file)


def full_record(figure: Figure, peers: Iterable[Figure]) -> dict[str, object]:
    """A figure with all comparisons, as one JSON object."""
    told = published(figure.model, figure.fp8, figure.name)
    peer = _same(figure, peers)
    return {
        **asdict(figure),
        "fraction_of_floor": figure.fraction,
        "published_vllm": told.vllm,
        "ratio_to_published_vllm": figure.better_than(told.vllm),
        "goal": told.goal,
        "measured_vllm": peer.value if peer else None,
        "ratio_to_measured_vllm": figure.better_than(peer.value) if peer else None,
    }


def table(figures: Sequence[Figure], peers: Sequence[Figure]) -> str:
    """A line per figure: ours, the floor and its fraction, vLLM as published, vLLM in this run, the goal."""
    head = f"{'figure':<14}{'ours':>11} {'unit':<6}{'floor':>10}{'of it':>7}{'vLLM publ.':>12}{'ratio':>7}"
    head += f"{'vLLM here':>11}{'ratio':>7}{'goal':>9}  met"
    lines = [head]
    for figure in figures:
        told, peer = published(figure.model, figure.fp8, figure.name), _same(figure, peers)
        here = peer.value if peer else None
        margin = figure.better_than(told.goal)
        lines.append(
            f"{figure.name:<14}{_number(figure.value):>11} {figure.unit:<6}{_number(figure.floor):>10}"
            f"{_percent(figure.fraction):>7}{_number(told.vllm):>12}{_ratio(figure.better_than(told.vllm)):>7}"
            f"{_number(here):>11}{_ratio(figure.better_than(here)):>7}{_number(told.goal):>9}"
            f"  {'' if margin is None else 'yes' if margin >= 1 else 'no'}"
        )
    return "\n".join(lines)


def _same(figure: Figure, peers: Iterable[Figure]) -> Figure | None:
    return next((peer for peer in peers if peer.name == figure.name), None)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3f}" if value < 10 else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
