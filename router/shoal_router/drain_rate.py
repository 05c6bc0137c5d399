"""How quickly a queue drains: tokens per second that left it while somebody waited. Pure; time is passed in.

Only time in which somebody waited counts: a fleet that is not asked for more says nothing about how much it can do.
"""

from __future__ import annotations

from math import exp
from typing import Final

WINDOW_S: Final = 5.0  # what lies further back counts for little
# Requests that came together go together: until some have left, or long enough nobody has, nothing can be said.
LEAST_S, LEAST_LEFT = 0.5, 8
ENOUGH_S: Final = 3.0
FORGET_S: Final = 60.0  # after which the last busy time says nothing about the next: replicas come and go


class DrainRate:
    """One queue. It remembers its last busy time."""

    __slots__ = ("_at_s", "_left", "_seconds", "_tokens", "busy")

    def __init__(self) -> None:
        self.busy = False
        self._at_s = 0.0
        # What lies further back counts less, in all three.
        self._seconds = 0.0  # in which somebody waited
        self._left = 0.0  # requests that left in them
        self._tokens = 0.0  # of these

    def opened(self, now_s: float) -> None:
        """Somebody waits from now on."""
        if self.busy:
            return
        self.busy = True
        if now_s - self._at_s > FORGET_S:
            self._seconds = self._left = self._tokens = 0.0
        self._at_s = now_s

    def left(self, tokens: float, now_s: float, *, back: bool = False) -> None:
        """Somebody has left it to be served, or has come back without."""
        self._pass(now_s)
        self._left += -1 if back else 1
        self._tokens += -tokens if back else tokens

    def closed(self, now_s: float) -> None:
        """Nobody waits any more."""
        self._pass(now_s)
        self.busy = False

    def per_s(self, now_s: float, next_tokens: float = 0.0) -> float | None:
        """Tokens per second; None while too little was seen. `next_tokens` are those of a request that may be about
        to go: nothing is said to stand still because it moves in large pieces.
        """
        self._pass(now_s)
        if self._seconds < LEAST_S or (self._left < LEAST_LEFT and self._seconds < ENOUGH_S):
            return None
        return (self._tokens + next_tokens) / self._seconds

    def _pass(self, now_s: float) -> None:
        if self.busy and now_s > self._at_s:
            kept = exp((self._at_s - now_s) / WINDOW_S)
            self._tokens *= kept
            self._left *= kept
            self._seconds = self._seconds * kept + WINDOW_S * (1 - kept)
            self._at_s = now_s
