"""uvicorn as we use it: our connections, no signal handlers, no log of its own, a sweep of readers that are stuck."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from shoal_engine.server.connection import Connection, connection_type
from shoal_engine.server.limits import Limits

BACKLOG = 2048


class HttpServer(uvicorn.Server):
    """`serve(sockets=[...])` until `end()`. What a signal means is decided elsewhere."""

    @classmethod
    def of(cls, app: ASGIApp, limits: Limits, grace_s: float) -> HttpServer:
        """`grace_s`: what connections get to close when the server ends."""
        config = uvicorn.Config(
            app,
            http=connection_type(limits),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=int(limits.keep_alive_s),
            timeout_graceful_shutdown=int(grace_s),
            interface="asgi3",
        )
        return cls(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def sweep(self, now_s: float) -> int:
        """Drop connections whose reply nobody reads; how many they were."""
        connections = list(self.server_state.connections)
        return sum(isinstance(each, Connection) and each.sweep(now_s) for each in connections)

    def end(self) -> None:
        self.should_exit = True
        self.force_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port that is taken is found before anything is loaded. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
