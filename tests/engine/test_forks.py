from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shoal_engine import forks
from shoal_engine.forks import fork, usable_cores


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_fork_ends_with_the_status_of_its_work() -> None:
    assert [status_of(fork(lambda status=status: status)) for status in (0, 3)] == [0, 3]


def test_work_that_raises_ends_with_255_and_does_not_return_here() -> None:
    def work() -> int:
        raise RuntimeError("no")

    parent = os.getpid()
    assert status_of(fork(work)) == 255
    assert os.getpid() == parent


def test_a_fork_that_is_alone_holds_no_file_of_ours_open() -> None:
    reader, writer = os.pipe()
    child = fork(lambda: time.sleep(60) or 0, alone=True)
    os.close(writer)
    assert os.read(reader, 1) == b""  # would wait for the child if it had the other end
    os.close(reader)
    os.kill(child, 9)
    assert status_of(child) == -9


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("nonsense", 8), (None, 8)],
)
def test_cores_are_bounded_by_the_containers_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str | None, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(forks, "_CPU_QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores() == cores
