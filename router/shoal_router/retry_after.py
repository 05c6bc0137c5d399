"""When a refused client may ask again, as Retry-After has it: whole seconds. Pure; chance is passed in."""

from __future__ import annotations

from math import ceil
from typing import Final

SPREAD: Final = 0.2  # so that clients refused together do not come back together
LONGEST_S: Final = 3600


def after_estimate(wait_s: float, chance: float) -> int:
    """After a wait that is an estimate: up to a fifth sooner or later. `chance` lies in [0, 1)."""
    return _whole(wait_s * (1 + SPREAD * (2 * chance - 1)))


def after_known(wait_s: float, chance: float) -> int:
    """After a wait that is certain: never sooner, or the client would come in vain."""
    return _whole(wait_s * (1 + SPREAD * chance))


def _whole(seconds: float) -> int:
    # The last microsecond is arithmetic's, not the client's.
    return max(1, ceil(min(seconds, LONGEST_S) - 1e-6))
