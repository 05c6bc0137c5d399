"""Which TCP ports of this machine are free. Binds sockets for a moment; reserves nothing."""

from __future__ import annotations

import contextlib
import socket

from shoal_operator.local.errors import CannotRun

LOOPBACK = "127.0.0.1"


def free_ports(count: int) -> tuple[int, ...]:
    """`count` different loopback ports that nothing listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return tuple(each.getsockname()[1] for each in sockets)


def require_free(host: str, port: int) -> None:
    """Raises CannotRun if nothing could listen on host:port."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections are only in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotRun(
                f"port {port} on {host} cannot be used ({error.strerror}): "
                "stop what listens there or choose another with --port"
            ) from error
