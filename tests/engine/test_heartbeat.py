from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from shoal_engine.heartbeat import Beat, HangLimits, Heartbeat, hangs, stalled_s

S = 10**9
LIMITS = HangLimits(step_s=60, first_step_s=300, first_steps=32)


@pytest.mark.parametrize(
    ("beat", "waiting_since", "now", "hung"),
    [
        (Beat(100, 10 * S, 0), None, 1000 * S, False),  # idle for long
        (Beat(100, 10 * S, 5 * S), None, 60 * S, False),  # a long step
        (Beat(100, 10 * S, 5 * S), None, 71 * S, True),  # no step for 61 s
        (Beat(100, 10 * S, 900 * S), None, 950 * S, False),  # idle, then work for 50 s
        (Beat(100, 10 * S, 900 * S), None, 961 * S, True),
        (Beat(100, 10 * S, 0), 900 * S, 961 * S, True),  # hung before it read its socket
        (Beat(100, 950 * S, 5 * S), 5 * S, 961 * S, False),  # busy for hours, stepping
        (Beat(3, 10 * S, 5 * S), None, 300 * S, False),  # the first steps may compile
        (Beat(3, 10 * S, 5 * S), None, 311 * S, True),
        (Beat(31, 10 * S, 5 * S), 5 * S, 71 * S, False),
        (Beat(32, 10 * S, 5 * S), 5 * S, 71 * S, True),
    ],
)
def test_hung_is_work_without_a_step_for_longer_than_a_step_can_take(
    beat: Beat, waiting_since: int | None, now: int, hung: bool
) -> None:
    assert hangs(beat, waiting_since, now, LIMITS) is hung


def test_an_idle_engine_has_waited_for_nothing() -> None:
    assert stalled_s(Beat(5, 1, 0), None, 10**15) == 0.0


def test_the_pulse_of_another_process_can_be_read_without_its_help() -> None:
    heartbeat = Heartbeat.create()
    code = (
        "import sys; from shoal_engine.heartbeat import Heartbeat\n"
        "beat = Heartbeat(int(sys.argv[1])); beat.begin(); beat.step(); beat.step()\n"
        "print(flush=True); sys.stdin.read()"
    )
    before = time.monotonic_ns()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(heartbeat.fd)],
        pass_fds=[heartbeat.fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(19)  # SIGSTOP: it can do nothing for us now
        beat = heartbeat.read()
        child.send_signal(18)
        assert child.stdin is not None
        child.stdin.close()
    assert beat.steps == 2
    assert before < beat.busy_since_ns <= beat.step_at_ns < time.monotonic_ns()
    assert os.fstat(heartbeat.fd).st_nlink == 0  # nothing to clean up
    heartbeat.close()


def test_work_that_goes_on_keeps_the_time_at_which_it_began() -> None:
    heartbeat = Heartbeat.create()
    heartbeat.begin()
    began = heartbeat.read().busy_since_ns
    heartbeat.begin()
    assert heartbeat.read().busy_since_ns == began
    heartbeat.idle()
    assert heartbeat.read().busy_since_ns == 0
    heartbeat.close()
