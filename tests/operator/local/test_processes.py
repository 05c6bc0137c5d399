"""Real child processes: their lines, their end, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from shoal_operator.local.lifeline import Lifeline
from shoal_operator.local.processes import MAX_LINE_BYTES, TAIL_LINES, Command, Process
from tests.operator.local.liveness import alive, wait_gone

WAIT_S = 10.0
# Starts a grandchild that ignores SIGTERM, prints both pids, sleeps.
FAMILY = """
import os, subprocess, sys, time
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
print(os.getpid(), subprocess.Popen([sys.executable, "-c", code]).pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def lifeline() -> Iterator[Lifeline]:
    with Lifeline() as lifeline:
        yield lifeline


async def run(code: str, lifeline: Lifeline, **env: str) -> tuple[int, tuple[str, ...], list[str]]:
    """Exit code, last stderr lines and all lines of a Python program."""
    lines: list[str] = []
    process = await Process.start(Command("child", (sys.executable, "-c", code), env), lifeline, lines.append)
    death = await asyncio.wait_for(process.wait(), WAIT_S)
    return death.returncode, death.last_lines, lines


async def test_lines_of_both_streams_arrive_and_the_last_of_stderr_are_kept(lifeline: Lifeline) -> None:
    code = "import sys\nprint('out')\nfor n in range(20): print(n, file=sys.stderr)\nsys.exit(7)"
    returncode, last_lines, lines = await run(code, lifeline)
    assert returncode == 7
    assert last_lines == tuple(str(n) for n in range(20 - TAIL_LINES, 20))
    assert sorted(lines) == sorted(["out", *(str(n) for n in range(20))])


async def test_line_longer_than_any_buffer_comes_in_pieces(lifeline: Lifeline) -> None:
    _, _, lines = await run("print('x' * 300_000)", lifeline)
    assert "".join(lines) == "x" * 300_000
    assert max(map(len, lines)) <= 65536 + MAX_LINE_BYTES


async def test_bytes_that_are_no_text_and_a_missing_last_newline_are_shown(lifeline: Lifeline) -> None:
    _, _, lines = await run("import sys; sys.stdout.buffer.write(b'a\\xffb\\r\\nlast')", lifeline)
    assert lines == ["a�b", "last"]


async def test_environment_is_added_to_ours(lifeline: Lifeline) -> None:
    code = "import os; print(os.environ['SHOAL_X'], 'PATH' in os.environ)"
    assert (await run(code, lifeline, SHOAL_X="1"))[2] == ["1 True"]


async def test_program_that_does_not_exist_is_an_oserror(lifeline: Lifeline) -> None:
    with pytest.raises(FileNotFoundError):
        await Process.start(Command("child", ("/no/such/program",)), lifeline, print)


@pytest.mark.parametrize("end", ["crash", "kill"])
async def test_what_a_child_has_started_ends_with_it(end: str, lifeline: Lifeline) -> None:
    pids: list[int] = []
    known = asyncio.Event()

    def note(line: str) -> None:
        pids.extend(map(int, line.split()))
        known.set()

    process = await Process.start(Command("child", (sys.executable, "-c", FAMILY)), lifeline, note)
    await asyncio.wait_for(known.wait(), WAIT_S)
    if end == "kill":
        process.kill()
    else:
        os.kill(process.pid, signal.SIGKILL)  # the child alone; the grandchild still holds its pipes
    death = await asyncio.wait_for(process.wait(), WAIT_S)
    assert death.returncode == -signal.SIGKILL
    wait_gone(pids)


def test_family_dies_when_the_parent_is_killed() -> None:
    parent = f"""
import asyncio, sys
from shoal_operator.local.lifeline import Lifeline
from shoal_operator.local.processes import Command, Process
async def main():
    lifeline = Lifeline()
    command = Command("child", (sys.executable, "-c", {FAMILY!r}))
    process = await Process.start(command, lifeline, lambda line: print(line, flush=True))
    await process.wait()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        process.kill()
    wait_gone(pids)


def test_lifeline_leaves_a_group_alone_once_forgotten() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
    ) as process:
        with Lifeline() as lifeline:
            lifeline.watch(process.pid)
            lifeline.forget(process.pid)
        assert process.poll() is None
        with Lifeline() as lifeline:
            lifeline.watch(process.pid)
        assert process.wait(WAIT_S) == -signal.SIGKILL
