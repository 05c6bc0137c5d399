"""When a proxied request has waited too long for its replica.

Pure; the client's own pace is listener.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits on one request's time with replicas."""

    first_byte_s: float = 300.0  # of a stream; other replies begin when they are complete
    idle_s: float = 60.0  # between two pieces of a reply
    total_s: float = 3600.0


class Overdue(Enum):
    """What took too long, in words for the client."""

    TOTAL = "the request took too long altogether; ask for fewer tokens"
    FIRST_BYTE = "it did not begin to answer in time; try again later"
    IDLE = "it fell silent in the middle of its answer; send the request again"


def overdue(
    timeouts: Timeouts, *, age_s: float, waited_s: float | None, silent_s: float | None
) -> Overdue | None:
    """What a request is late with, if anything.

    `age_s` is the time since it came, `waited_s` for a stream's first byte, `silent_s` since its last piece;
    None where that does not apply.
    """
    if age_s > timeouts.total_s:
        return Overdue.TOTAL
    if waited_s is not None and waited_s > timeouts.first_byte_s:
        return Overdue.FIRST_BYTE
    if silent_s is not None and silent_s > timeouts.idle_s:
        return Overdue.IDLE
    return None
