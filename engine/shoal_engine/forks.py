"""Run a function in a fork of this process, which ends with it. Knows nothing of what the function does."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from shoal_engine.host_runtime import end_with_parent

log = logging.getLogger(__name__)

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_MOST_DESCRIPTORS = 65536


def fork(work: Callable[[], int], *, alone: bool = False) -> int:
    """The id of a child that ends with the status that `work` returns, 255 if it raises; it dies with this process.

    alone: close what this process has open, but for the standard streams: whoever waits for the end of a socket of ours
    must not wait for the child.
    """
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    status = 255
    try:
        end_with_parent(parent)
        if alone:
            os.closerange(3, _MOST_DESCRIPTORS)
        status = work()
    except BaseException:
        log.exception("a forked process failed")
    finally:
        os._exit(status)


def usable_cores() -> int:
    """Cores that this process may keep busy, by its affinity and its container's quota; at least 1."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CPU_QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
