"""One child process: start it, pass its lines on, stop it and everything it started. Decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO

from shoal_operator.local.lifeline import Lifeline, kill_group

MAX_LINE_BYTES = 8192
TAIL_LINES = 8
FLUSH_S = 2.0  # how long a dead process's pipes may take to empty

OnLine = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Command:
    """What to run: `env` is added to this process's own environment, an empty value included."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Death:
    """How a process ended: its return code, negative for a signal, and its last lines on stderr."""

    returncode: int
    last_lines: tuple[str, ...]


class Process:
    """A running child that leads its own session, so a Ctrl-C in the terminal does not reach it."""

    def __init__(
        self,
        child: asyncio.subprocess.Process,
        readers: tuple[asyncio.Task[None], ...],
        tail: deque[str],
        lifeline: Lifeline,
    ) -> None:
        self._child = child
        self._readers = readers
        self._tail = tail
        self._lifeline = lifeline

    @classmethod
    async def start(cls, command: Command, lifeline: Lifeline, on_line: OnLine) -> Process:
        """Raises OSError if the program cannot be executed."""
        # Our own pipes: with asyncio's, wait() on Python 3.11 returns only when a grandchild has closed
        # them too.
        with _pipe() as (out, out_end), _pipe() as (err, err_end):
            child = await asyncio.create_subprocess_exec(
                *command.argv,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **command.env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out_end,
                stderr=err_end,
                start_new_session=True,
            )
            lifeline.watch(child.pid)
            tail: deque[str] = deque(maxlen=TAIL_LINES)
            readers = (
                asyncio.create_task(_pump(out, on_line)),
                asyncio.create_task(_pump(err, on_line, tail)),
            )
        return cls(child, readers, tail, lifeline)

    @property
    def pid(self) -> int:
        return self._child.pid

    async def wait(self) -> Death:
        """Wait for its end, sweep up what it has left behind, and say how it ended."""
        returncode = await self._child.wait()
        kill_group(self.pid)  # an engine process must not outlive the server it belongs to
        self._lifeline.forget(self.pid)
        await asyncio.wait(self._readers, timeout=FLUSH_S)
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        return Death(returncode, tuple(self._tail))

    def terminate(self) -> None:
        """Ask it to drain and stop: SIGTERM to it alone, it stops its own children."""
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to it and to all it has started."""
        if self._child.returncode is None:
            kill_group(self.pid)


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[IO[bytes], int]]:
    """A pipe for a child: our read end, which stays open, and the write end, which only the child keeps."""
    read_fd, write_fd = os.pipe()
    read_end = os.fdopen(read_fd, "rb", buffering=0)
    try:
        yield read_end, write_fd
    except BaseException:
        read_end.close()
        raise
    finally:
        os.close(write_fd)


async def _pump(pipe: IO[bytes], on_line: OnLine, tail: deque[str] | None = None) -> None:
    loop = asyncio.get_running_loop()
    stream = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
    try:
        async for line in _lines(stream):
            if tail is not None and line.strip():
                tail.append(line)
            on_line(line)
    finally:
        transport.close()


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Decoded lines without their end; a longer one than MAX_LINE_BYTES comes in pieces.

    StreamReader.readline raises on a line beyond its limit and would lose it: a child may print whatever it
    likes.
    """
    rest = b""
    while chunk := await stream.read(65536):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield _text(line)
        while len(rest) > MAX_LINE_BYTES:
            yield _text(rest[:MAX_LINE_BYTES])
            rest = rest[MAX_LINE_BYTES:]
    if rest:
        yield _text(rest)


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")
