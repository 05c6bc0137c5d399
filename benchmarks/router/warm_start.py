"""Starts engines as forks of a process that has imported what they import: a second each instead of eight.

For benchmarks that kill replicas far more often than a real fleet dies, on a machine with few cores. What runs after
the fork is the product: `shoal serve`, and its engine process as a child of it. Reads one JSON object per line, `argv`
and `log`, and answers with the process id, which leads a session of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any


class Forked:
    """What EngineChild needs of subprocess.Popen, for `python -m shoal_engine.engine_process` without a new Python."""

    def __init__(self, command: Sequence[str], *, stdin: Any = None, pass_fds: Iterable[int] = ()) -> None:
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            run(
                lambda: engine(command[command.index("shoal_engine.engine_process") + 1 :]),
                {*pass_fds, 0, 1, 2},
            )

    def wait(self) -> int:
        """Called from one thread only."""
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def poll(self) -> int | None:
        return self._code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def engine(argv: Sequence[str]) -> int:
    from shoal_engine import engine_process

    return engine_process.main(argv, engine_process._load)


def api(argv: Sequence[str], log: str) -> int:
    from shoal_engine import __main__ as serve
    from shoal_engine.server import engine_child

    os.setsid()
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    engine_child.subprocess = SimpleNamespace(Popen=Forked, DEVNULL=None)  # type: ignore[assignment, attr-defined]
    return serve.main(argv)


def run(main: Any, keep: set[int]) -> None:
    """The rest of a forked child's life."""
    code = 1
    try:
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in keep:
                with contextlib.suppress(OSError):  # the listing's own
                    os.close(int(name))
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        code = main()
    except BaseException as error:
        print(f"warm start: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def main() -> None:
    import shoal_engine.cpu_backend
    import shoal_engine.engine
    import shoal_engine.hf_tokenizer
    import shoal_engine.server.serving  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    print("warm", flush=True)
    started = []
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            run(lambda order=order: api(order["argv"], order["log"]), {0, 1, 2})
        started.append(pid)
        print(pid, flush=True)
    for pid in started:  # whoever asked for them has gone
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
