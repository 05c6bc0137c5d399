"""When a process that died starts again, and when that is pointless. Pure: no clocks, no processes."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Delays double from `first_delay_s` to `max_delay_s`; serving for `stable_s` clears the record."""

    first_delay_s: float = 1.0
    max_delay_s: float = 30.0
    stable_s: float = 60.0
    max_start_failures: int = 3


@dataclass(frozen=True, slots=True)
class Record:
    """What one process has been through: deaths in a row, and whether it has ever been ready."""

    failures: int = 0
    ever_ready: bool = False


def after_death(record: Record, policy: RestartPolicy, served_s: float | None) -> Record:
    """The record after one more death. `served_s`: how long this life was ready, None if it never was."""
    if served_s is None:
        return replace(record, failures=record.failures + 1)
    failures = 1 if served_s >= policy.stable_s else record.failures + 1
    return Record(failures=failures, ever_ready=True)


def restart_delay_s(record: Record, policy: RestartPolicy, permanent: bool = False) -> float | None:
    """Seconds to wait before the next start; None: give up.

    Only a process that has never been ready is given up: at once if the cause is `permanent` (the same
    start would fail the same way), else after `max_start_failures`. One that has served before comes back
    sooner or later, and its neighbours go on serving meanwhile.
    """
    if not record.ever_ready and (permanent or record.failures >= policy.max_start_failures):
        return None
    exponent = min(max(record.failures - 1, 0), 32)  # bounded: a float overflows after a thousand deaths
    return min(policy.first_delay_s * 2.0**exponent, policy.max_delay_s)
