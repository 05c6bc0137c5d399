"""How far a fetch is: counted by the threads that load, read by a bar on a terminal and by GET /progress."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

BAR_PERIOD_S = 0.2
REQUEST_TIMEOUT_S = 10


class State(StrEnum):
    DOWNLOADING = "Downloading"
    VERIFYING = "Verifying"
    READY = "Ready"
    FAILED = "Failed"


class Progress:
    """Bytes and state of one fetch; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total: int | None = None
        self._done = 0
        self._state = State.DOWNLOADING
        self._message = ""

    def expect(self, total: int) -> None:
        """The whole is `total` bytes; what earlier runs left counts as done, by `add`."""
        with self._lock:
            self._total = total

    def add(self, count: int) -> None:
        """`count` more bytes are on disk; negative for bytes that were wrong and are gone."""
        with self._lock:
            self._done += count

    def enter(self, state: State, message: str = "") -> None:
        with self._lock:
            self._state, self._message = state, message

    def snapshot(self) -> dict[str, object]:
        """The body of GET /progress."""
        with self._lock:
            return {
                "state": self._state.value,
                "bytes_total": self._total,
                "bytes_done": self._done,
                "message": self._message,
            }


class DualStackServer(ThreadingHTTPServer):
    """On all addresses of the pod, IPv4 and IPv6, as a cluster has either or both."""

    daemon_threads = True
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


@contextmanager
def served(progress: Progress, port: int | None) -> Iterator[int | None]:
    """Answer GET /progress on `port` while the block runs; gives the port, also for 0. OSError when it is taken."""
    if port is None:
        yield None
        return
    server = DualStackServer(("", port), _handler(progress))
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def _handler(progress: Progress) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_S

        def do_GET(self) -> None:
            if self.path != "/progress":
                self.send_error(404)
                return
            body = json.dumps(progress.snapshot()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- http.server's name
            """Somebody asks every few seconds: not worth a line."""

    return Handler


@contextmanager
def shown(progress: Progress, console: Console) -> Iterator[None]:
    """A bar while the block runs; nothing where `console` is no terminal."""
    if not console.is_terminal:
        yield
        return
    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    ended = threading.Event()
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(State.DOWNLOADING.value, total=None)

        def follow() -> None:
            last = False
            while not last:
                last = ended.wait(BAR_PERIOD_S)
                now = progress.snapshot()
                bar.update(
                    task,
                    description=str(now["state"]),
                    total=now["bytes_total"],  # type: ignore[arg-type]
                    completed=now["bytes_done"],  # type: ignore[arg-type]
                )

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
