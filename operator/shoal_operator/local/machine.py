"""What this machine has to share: CPUs and GPUs. Reads the system, decides nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")


def available_cpus(cgroup_cpu: Path = CGROUP_CPU) -> int:
    """CPUs by affinity, and by the quota of a container, which affinity does not show; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(affinity, int(_quota(cgroup_cpu))), 1)


def _quota(cgroup_cpu: Path) -> float:
    """CPUs by a cgroup v2 file "MICROSECONDS PERIOD" or "max PERIOD"; without one, more than there are."""
    try:
        quota, period = cgroup_cpu.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        return 2**16


def visible_gpus(environ: Mapping[str, str], devices: Path = Path("/dev")) -> tuple[str, ...]:
    """Ids for CUDA_VISIBLE_DEVICES: those that it lists already, else one for each NVIDIA device."""
    if (listed := environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(each for each in listed.split(",") if each and each != "-1")
    count = sum(bool(re.fullmatch(r"nvidia\d+", device.name)) for device in devices.glob("nvidia*"))
    return tuple(map(str, range(count)))
