"""The engine's own process: load, then read messages, step, send outputs, for ever. The API process starts
it.

It knows nothing of HTTP or text. It ends when it is told to (Stop), when its parent is gone (the socket
closes), or with a last Failed message that says why. An error of one request is that request's last Output
and touches no other.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from shoal_api.exit_codes import ExitCode
from shoal_engine import messages
from shoal_engine.errors import BadNumbers, EngineError, ModelLoadError, is_device_error
from shoal_engine.frames import FrameSocket
from shoal_engine.gpu_wakeup import woken_gpu
from shoal_engine.heartbeat import Heartbeat
from shoal_engine.host_runtime import end_with_parent, prepare
from shoal_engine.logs import set_up_logging

log = logging.getLogger(__name__)

Progress = Callable[[messages.Loading], None]
STATS_PERIOD_S = 0.1  # a step that produced no output is news only this often


class StepEngine(Protocol):
    """What this loop needs of an engine; shoal_engine.engine.Engine is the real one."""

    @property
    def ready(self) -> messages.Ready: ...

    @property
    def has_work(self) -> bool: ...

    def add(self, request: messages.Submit) -> None: ...

    def abort(self, ids: list[str]) -> None: ...

    def prepare(self) -> bool: ...

    def step(self) -> list[messages.Output]: ...

    def stats(self) -> messages.Stats: ...

    def tag_changes(self) -> messages.TagChanges | None: ...


def serve(
    link: FrameSocket[messages.ToEngine], heartbeat: Heartbeat, load: Callable[[Progress], StepEngine]
) -> int:
    """Load and run until the end; returns the exit code."""
    try:
        engine = load(link.send)
        gc.collect()
        gc.freeze()  # the model stays: no collection need look at it again
        link.send(engine.ready)
        EngineLoop(engine, link, heartbeat).run()
    except Exception as error:
        failed = failure(error)
        if (
            failed.exit_code != ExitCode.MODEL
        ):  # the API process tells the message; this is for whoever debugs
            log.exception("the engine process ends")
        link.send(failed)
        link.close()
        return failed.exit_code
    link.close()
    return ExitCode.STOPPED


class EngineLoop:
    """Messages in, steps, outputs out. One thread; whatever it waits for, it waits for in receive()."""

    def __init__(
        self, engine: StepEngine, link: FrameSocket[messages.ToEngine], heartbeat: Heartbeat
    ) -> None:
        self._engine = engine
        self._link = link
        self._heartbeat = heartbeat
        self._busy = False
        self._stats_at_s = 0.0

    def run(self) -> None:
        """Until Stop arrives or the API process is gone. Raises what a step raises."""
        while not self._link.closed:
            refused: list[messages.Output] = []
            idle = not self._engine.has_work and not self._engine.prepare()
            for message in self._link.receive(wait=idle):
                if isinstance(message, messages.Stop):
                    return
                if isinstance(message, messages.Abort):
                    self._engine.abort(message.ids)
                elif (output := self._add(message)) is not None:
                    refused.append(output)
            self._report(refused + self._step())

    def _add(self, request: messages.Submit) -> messages.Output | None:
        """Hand a request to the engine; its last Output if the engine will not have it."""
        try:
            self._engine.add(request)
        except EngineError as error:
            return messages.failed_output(request.id, error)
        except Exception:
            log.exception("request %s could not be added", request.id)
            return messages.failed_output(request.id, EngineError("The engine failed on this request."))
        return None

    def _step(self) -> list[messages.Output]:
        if not self._engine.has_work:
            return []
        self._heartbeat.begin()
        outputs = self._engine.step()
        self._heartbeat.step()
        return outputs

    def _report(self, outputs: list[messages.Output]) -> None:
        """Send what the step did. The gauges of an engine that has just become idle go out at once, or they
        never would.
        """
        was_busy, self._busy = self._busy, self._engine.has_work
        if not self._busy:
            self._heartbeat.idle()
        now_s = time.monotonic()
        if outputs or (was_busy and not self._busy) or now_s - self._stats_at_s >= STATS_PERIOD_S:
            self._stats_at_s = now_s
            self._link.send(messages.Outputs(outputs, self._engine.stats(), self._engine.tag_changes()))


def failure(error: Exception) -> messages.Failed:
    """Why the process ends, for the user."""
    if isinstance(error, ModelLoadError):
        return messages.Failed(error.message, ExitCode.MODEL)
    if isinstance(error, BadNumbers):
        return messages.Failed(error.message, ExitCode.BAD_NUMBERS)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return messages.Failed(
            f"Out of memory: {error or 'the host has none left'}. Use a smaller --max-model-len, "
            "--max-num-seqs or --kv-cache-memory-bytes.",
            ExitCode.OUT_OF_MEMORY,
        )
    if is_device_error(error):
        return messages.Failed(f"The device reported an error: {error}", ExitCode.DEVICE)
    return messages.Failed(f"The engine failed: {type(error).__name__}: {error}", ExitCode.ENGINE_DIED)


def main(argv: Sequence[str], load: Callable[[str, Progress], StepEngine]) -> int:
    """`load` gets the options as the JSON of the command line. The API process passes both descriptors."""
    parser = argparse.ArgumentParser(prog="shoal-engine", description="The engine process of `shoal serve`.")
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--heartbeat-fd", type=int, required=True)
    parser.add_argument("--options", required=True)
    args = parser.parse_args(argv)
    set_up_logging()
    leave_signals_to_parent()
    link = FrameSocket[messages.ToEngine](socket.socket(fileno=args.socket_fd), messages.ToEngine)
    heartbeat = Heartbeat(args.heartbeat_fd)
    for descriptor in (args.socket_fd, args.heartbeat_fd):
        _keep_from_children(descriptor)
    return serve(link, heartbeat, lambda progress: load(args.options, progress))


def leave_signals_to_parent() -> None:
    """A Ctrl-C reaches the whole process group; only the API process decides what it means. If that dies, so
    do we.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent(os.getppid())


def _keep_from_children(descriptor: int) -> None:
    """A copy in a grandchild would hide our end from the API process."""
    os.set_inheritable(descriptor, False)


def _load(options_json: str, progress: Progress) -> StepEngine:
    prepare(os.environ)
    from shoal_api.options import ModelOptions

    options = ModelOptions.model_validate_json(options_json)
    with woken_gpu(options.device):
        from shoal_engine.engine import Engine

        gc.freeze()  # modules stay
        return Engine.load(options, progress)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], _load))
