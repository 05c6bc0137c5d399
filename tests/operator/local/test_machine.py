"""What a machine offers, read from files as a container or a GPU box has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal_operator.local.machine import available_cpus, visible_gpus


@pytest.mark.parametrize(
    ("content", "limit"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("?", None)]
)
def test_a_containers_quota_limits_the_cpus(content: str, limit: int | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert available_cpus(tmp_path / "cpu.max") == (limit or len(os.sched_getaffinity(0)))


def test_without_a_quota_affinity_counts(tmp_path: Path) -> None:
    assert available_cpus(tmp_path / "absent") == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("environ", "gpus"),
    [
        ({}, ("0", "1")),
        ({"CUDA_VISIBLE_DEVICES": "3,GPU-7f"}, ("3", "GPU-7f")),
        ({"CUDA_VISIBLE_DEVICES": ""}, ()),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ()),
    ],
)
def test_gpus_are_those_that_cuda_would_see(
    environ: dict[str, str], gpus: tuple[str, ...], tmp_path: Path
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert visible_gpus(environ, tmp_path) == gpus
