"""How quickly a queue drains: tokens per second that left it while somebody waited. Pure; time is passed in.

Only time in which somebody waited counts: a fleet that is not asked for more says nothing about how much it can do.
"""

from __future__ import annotations

from math import exp

WINDOW_S = 5.0  # what lies further back counts for little
FORGET_S = 60.0  # after which the last busy time says nothing about the next: replicas come and go
LEAST_S = 0.5  # of waiting, below which nothing can be said yet


class DrainRate:
    """One queue. It remembers its last busy time."""

    __slots__ = ("_at_s", "_seconds", "_tokens", "busy")

    def __init__(self) -> None:
        self.busy = False
        self._at_s = 0.0
        self._seconds = 0.0  # of waiting, those further back counting less
        self._tokens = 0.0  # that left in them

    def opened(self, now_s: float) -> None:
        """Somebody waits from now on."""
        if self.busy:
            return
        self.busy = True
        if now_s - self._at_s > FORGET_S:
            self._seconds = self._tokens = 0.0
        self._at_s = now_s

    def left(self, tokens: float, now_s: float) -> None:
        """Somebody has left it to be served."""
        self._pass(now_s)
        self._tokens += tokens

    def closed(self, now_s: float) -> None:
        """Nobody waits any more."""
        self._pass(now_s)
        self.busy = False

    def per_s(self, now_s: float, head_tokens: float = 0.0) -> float | None:
        """Tokens per second; None while too little was seen. `head_tokens` are those of who is next and may be
        about to go: so that nothing is said to stand still because it moves in large pieces.
        """
        self._pass(now_s)
        if self._seconds < LEAST_S:
            return None
        return (self._tokens + head_tokens) / self._seconds

    def _pass(self, now_s: float) -> None:
        if self.busy and now_s > self._at_s:
            kept = exp((self._at_s - now_s) / WINDOW_S)
            self._tokens *= kept
            self._seconds = self._seconds * kept + WINDOW_S * (1 - kept)
            self._at_s = now_s
