"""How much each deployment is asked for: arrivals, requests held, time since the last. Counts; decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Asked:
    """One model. `last_s` is when a request last arrived or ended, on the caller's clock."""

    last_s: float
    arrivals: int = 0
    active: int = 0
    held: int = 0


class Demand:
    """All models that somebody asked for since the router started."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._started_s = now()
        self._models: dict[str, Asked] = {}

    def arrived(self, model: str) -> None:
        """A request for a known model begins."""
        asked = self._of(model)
        asked.arrivals += 1
        asked.active += 1
        asked.last_s = self._now()

    def ended(self, model: str) -> None:
        """It is over, one way or another."""
        asked = self._of(model)
        asked.active -= 1
        asked.last_s = self._now()

    def held(self, model: str, change: int) -> None:
        """So many more (or fewer, if negative) wait in the router."""
        self._of(model).held += change

    def of(self, models: tuple[str, ...]) -> tuple[int, int, float]:
        """Arrivals, requests held and idle seconds of several models together; active ones are not idle."""
        asked = [self._models[model] for model in models if model in self._models]
        now = self._now()
        last_s = max((each.last_s for each in asked), default=self._started_s)
        idle_s = 0.0 if any(each.active for each in asked) else now - last_s
        return sum(each.arrivals for each in asked), sum(each.held for each in asked), idle_s

    def _of(self, model: str) -> Asked:
        # The models are those that deployments and replicas name, never what clients invent.
        asked = self._models.get(model)
        if asked is None:
            asked = self._models[model] = Asked(self._now())
        return asked
