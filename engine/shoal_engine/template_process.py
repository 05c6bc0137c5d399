"""The engine's side of `template_worker.py`: start it, ask it, and end it when it does not answer in time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WORKER = Path(__file__).with_name("template_worker.py")


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """Of one rendering. CPU time is what a template can use up; wall time only runs out on a stalled machine."""

    cpu_seconds: float = 0.25
    max_memory_bytes: int = 256 << 20
    max_chars: int = 2 << 20
    wall_seconds: float = 10.0


class WorkerGone(Exception):
    """The process has ended or was ended: `reason` is "time", "memory" or "stalled"."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TemplateProcess:
    """One worker with its templates compiled. Not thread-safe: one request at a time."""

    def __init__(self, templates: Sequence[str], limits: TemplateLimits) -> None:
        self._limits = limits
        # A process group of its own: Ctrl-C on the terminal is for the engine, which still has answers to render.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            process_group=0,
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)  # a write must not outlast the deadline
        self.close = weakref.finalize(self, _end, self._process)
        setup = {
            "templates": list(templates),
            "cpu_seconds": limits.cpu_seconds,
            "max_memory_bytes": limits.max_memory_bytes,
            "max_chars": limits.max_chars,
        }
        self.started = self._ask(setup)  # {} or an error

    def render(self, template: int, variables: Mapping[str, Any]) -> dict[str, str]:
        """The worker's reply. Raises WorkerGone; TypeError, ValueError, RecursionError for what is no JSON."""
        return self._ask({"template": template, "variables": variables})

    def _ask(self, request: Mapping[str, Any]) -> dict[str, str]:
        frame = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")
        try:
            reply: dict[str, str] = json.loads(
                self._exchange(frame, time.monotonic() + self._limits.wall_seconds)
            )
        except TimeoutError:
            self.close()
            raise WorkerGone("stalled") from None
        except (OSError, EOFError):
            raise WorkerGone(self._reason()) from None
        return reply

    def _exchange(self, frame: bytes, deadline_s: float) -> bytes:
        to_worker, from_worker = self._process.stdin, self._process.stdout
        assert to_worker is not None
        assert from_worker is not None
        rest = memoryview(len(frame).to_bytes(4, "big") + frame)
        while rest:
            _wait(to_worker.fileno(), select.POLLOUT, deadline_s)
            rest = rest[os.write(to_worker.fileno(), rest) :]
        size = int.from_bytes(_read_exactly(from_worker.fileno(), 4, deadline_s), "big")
        return _read_exactly(from_worker.fileno(), size, deadline_s)

    def _reason(self) -> str:
        """Why its pipe has closed: the signal that ends it tells."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = self._process.returncode
        self.close()
        return "time" if code == -signal.SIGPROF else "memory"


def _read_exactly(fd: int, size: int, deadline_s: float) -> bytes:
    pieces = []
    while size:
        _wait(fd, select.POLLIN, deadline_s)
        piece = os.read(fd, size)
        if not piece:
            raise EOFError
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _wait(fd: int, event: int, deadline_s: float) -> None:
    """Until the pipe is ready or closed; `poll`, because `select` knows no descriptors beyond 1023."""
    ready = select.poll()
    ready.register(fd, event)
    if not ready.poll(max(deadline_s - time.monotonic(), 0.0) * 1000):
        raise TimeoutError


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.wait()
