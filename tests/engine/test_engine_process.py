from __future__ import annotations

import socket
import threading
import time

import pytest

from shoal_api.exit_codes import ExitCode
from shoal_engine.engine_process import failure, serve
from shoal_engine.errors import ModelLoadError
from shoal_engine.frames import FrameDecoder, FrameSocket, frame
from shoal_engine.heartbeat import Heartbeat
from shoal_engine.messages import (
    Abort,
    Failed,
    FromEngine,
    Loading,
    Output,
    Outputs,
    Ready,
    Stop,
    Submit,
    ToEngine,
)
from shoal_engine.sampling_params import SamplingParams
from tests.engine.server.scripted_engine import BAD, RAISE, REFUSE, Script, ScriptedEngine


class Parent:
    """The API process's end of an engine loop that runs in a thread."""

    def __init__(self, script: Script | None = None, error: Exception | None = None) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(20)
        self.heartbeat = Heartbeat.create()
        self._decoder = FrameDecoder[object](FromEngine)
        self._inbox: list[object] = []
        self.code: int | None = None

        def load(progress: object) -> ScriptedEngine:
            if error is not None:
                raise error
            self.engine = ScriptedEngine(script or Script())
            return self.engine

        def run() -> None:
            self.code = serve(FrameSocket[ToEngine](theirs, ToEngine), self.heartbeat, load)

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def send(self, *messages: object) -> None:
        self.socket.sendall(b"".join(map(frame, messages)))

    def next(self) -> object:
        while not self._inbox:
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError
            self._inbox += self._decoder.feed(data)
        return self._inbox.pop(0)

    def outputs_until_finished(self, *ids: str) -> dict[str, list[Output]]:
        got: dict[str, list[Output]] = {each: [] for each in ids}
        while not all(outputs and outputs[-1].finish_reason for outputs in got.values()):
            message = self.next()
            assert isinstance(message, Outputs)
            for output in message.outputs:
                got[output.id].append(output)
        return got

    def end(self) -> int | None:
        self.thread.join(timeout=20)
        self.socket.close()
        self.heartbeat.close()
        return self.code


def submit(request_id: str, ids: list[int], **params: object) -> Submit:
    return Submit(request_id, ids, SamplingParams(**params))  # type: ignore[arg-type]


def test_requests_run_together_and_stop_ends_the_process_with_0() -> None:
    parent = Parent()
    assert isinstance(parent.next(), Ready)
    parent.send(submit("a", [5, 6, 7], max_tokens=4), submit("b", [8], max_tokens=2))
    got = parent.outputs_until_finished("a", "b")
    assert [token for output in got["a"] for token in output.token_ids] == [5, 6, 7, 5]
    assert got["b"][-1].finish_reason == "length"
    assert parent.heartbeat.read().steps == 4
    parent.send(Stop())
    assert parent.end() == ExitCode.STOPPED


def test_an_idle_engine_prepares_until_nothing_is_left_and_then_waits() -> None:
    parent = Parent(Script(to_prepare=3))
    parent.next()
    parent.send(submit("a", [5], max_tokens=2))
    parent.outputs_until_finished("a")
    while parent.engine.prepared < 3:
        time.sleep(0.001)
    parent.send(Stop())
    assert parent.end() == ExitCode.STOPPED
    assert parent.engine.prepared == 3


def test_an_engine_that_prepares_without_end_answers_all_the_same() -> None:
    parent = Parent(Script(to_prepare=10**9))
    parent.next()
    for name in ("a", "b"):
        parent.send(submit(name, [5, 6], max_tokens=3))
        assert parent.outputs_until_finished(name)[name][-1].finish_reason == "length"
    parent.send(Stop())
    assert parent.end() == ExitCode.STOPPED
    assert parent.engine.prepared > 0


def test_a_request_that_cannot_be_added_ends_alone() -> None:
    parent = Parent(Script(max_queued=2))
    parent.next()
    burst = [submit(str(i), [3], max_tokens=2) for i in range(4)]
    parent.send(submit("bug", [REFUSE]), submit("bad", [BAD]), submit("ok", [3, 4], max_tokens=3), *burst)
    got = parent.outputs_until_finished("bug", "bad", "ok", "0", "1", "2", "3")
    assert got["bug"][-1].error_status == 500
    assert "bug in add" not in (got["bug"][-1].error_message or "")
    assert got["bad"][-1].error_code == "bad_numbers"
    assert got["ok"][-1].finish_reason == "length"
    full = [outputs[-1] for outputs in got.values() if outputs[-1].error_code == "queue_full"]
    assert full
    assert {(each.error_status, each.retry_after_s) for each in full} == {(429, 7)}
    parent.send(Stop())
    assert parent.end() == 0


def test_an_aborted_request_leaves_an_idle_engine_that_says_so() -> None:
    parent = Parent(Script(step_s=0.01))
    parent.next()
    parent.send(submit("a", [3], max_tokens=10**6))
    assert isinstance(parent.next(), Outputs)
    parent.send(Abort(["a", "unknown"]))
    while True:
        message = parent.next()
        assert isinstance(message, Outputs)
        if message.stats.num_running == 0:
            break
    assert parent.heartbeat.read().busy_since_ns == 0
    parent.send(Stop())
    assert parent.end() == 0


def test_the_engine_ends_when_its_parent_is_gone() -> None:
    parent = Parent(Script(step_s=0.01))
    parent.next()
    parent.send(submit("a", [3], max_tokens=10**6))
    parent.next()
    parent.socket.close()
    assert parent.end() == 0


def test_a_failing_step_ends_the_process_with_its_reason() -> None:
    parent = Parent()
    parent.next()
    parent.send(submit("a", [RAISE]))
    failed = parent.next()
    assert isinstance(failed, Failed)
    assert "RuntimeError: a bug in step()" in failed.message
    assert parent.end() == failed.exit_code == ExitCode.ENGINE_DIED


class AcceleratorError(RuntimeError):
    """Named as torch names it."""


class OutOfMemoryError(RuntimeError):
    """Named as torch names it."""


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ModelLoadError("model.gguf: cut off; download it again"), ExitCode.MODEL, "download it again"),
        (MemoryError(), ExitCode.OUT_OF_MEMORY, "--max-model-len"),
        (OutOfMemoryError("tried 2 GiB"), ExitCode.OUT_OF_MEMORY, "tried 2 GiB"),
        (AcceleratorError("illegal address"), ExitCode.DEVICE, "illegal address"),
        (RuntimeError("CUDA error: misaligned"), ExitCode.DEVICE, "misaligned"),
        (KeyError("w"), ExitCode.ENGINE_DIED, "KeyError"),
    ],
)
def test_each_way_to_fail_has_its_exit_code(error: Exception, code: ExitCode, text: str) -> None:
    assert failure(error).exit_code == code
    assert text in failure(error).message
    parent = Parent(error=error)
    assert parent.next() == failure(error)
    assert parent.end() == code


def test_progress_reaches_the_parent_while_loading() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    link = FrameSocket[ToEngine](theirs, ToEngine)

    def load(progress: object) -> ScriptedEngine:
        assert callable(progress)
        progress(Loading("weights", 1, 2))
        raise ModelLoadError("no")

    assert serve(link, Heartbeat.create(), load) == ExitCode.MODEL
    got = FrameDecoder[object](FromEngine).feed(ours.recv(1 << 16))
    assert got == [Loading("weights", 1, 2), Failed("no", ExitCode.MODEL)]
