"""All client connections of one router: their limits, what they share, and the sweep that enforces deadlines.

What one connection does is connection.py's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from shoal_router.connection import ClientConnection
from shoal_router.errors import RouterError
from shoal_router.http1 import HttpLimits
from shoal_router.journal import Journal
from shoal_router.request import Request


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """Limits of one listener's connections."""

    http: HttpLimits = field(default_factory=HttpLimits)
    head_timeout_s: float = 10.0  # from a request's first byte to the end of its head
    body_timeout_s: float = 30.0  # from there to the end of its body
    keep_alive_s: float = 75.0  # between two requests
    stalled_client_s: float = 30.0  # with a full send buffer
    linger_s: float = 2.0  # for a refused client to stop sending, so that it sees the refusal
    max_connections: int = 16_384
    max_peer_connections: int = 4096  # from one address, which may be a whole ingress
    max_receiving_bytes: int = 256 * 2**20  # of all bodies that are not complete yet


class Listener:
    """All client connections of one router, and what they share."""

    def __init__(
        self,
        settings: ConnectionSettings,
        *,
        vet: Callable[[Request], None],
        answer: Callable[[Request, ClientConnection], None],
        count_error: Callable[[RouterError], None],
        now: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.vet = vet
        self.answer = answer
        self.count_error = count_error
        self.now = now
        self.receiving_bytes = 0
        self.connections: set[ClientConnection] = set()
        self._of_peer: Counter[str] = Counter()  # connections of each address
        self.keep_alive_s = settings.keep_alive_s
        self.journal: Journal | None = None  # set while somebody wants to know what becomes of requests
        self.draining = False

    def make_connection(self) -> ClientConnection:
        """The protocol factory of the server."""
        return ClientConnection(self)

    def add(self, connection: ClientConnection, peer: str) -> bool:
        """Count a new connection; returns whether there is room for it, here and for its address."""
        self.connections.add(connection)
        self._of_peer[peer] += 1
        settings = self.settings
        return (
            len(self.connections) <= settings.max_connections
            and self._of_peer[peer] <= settings.max_peer_connections
        )

    def remove(self, connection: ClientConnection, peer: str) -> None:
        """A connection is lost."""
        self.connections.discard(connection)
        self._of_peer[peer] -= 1
        if not self._of_peer[peer]:
            del self._of_peer[peer]

    def sweep(self) -> None:
        """Enforce the deadlines; call it about once a second."""
        now = self.now()
        for connection in list(self.connections):
            connection.check_deadlines(now)

    def drain(self, keep_alive_s: float) -> None:
        """Let clients go: each reply from now on is the last of its connection, and says so.

        A connection without a request for `keep_alive_s` is closed. Its client cannot be told: the longer this is, the
        less likely does it send a request at that very moment.
        """
        self.draining = True
        self.keep_alive_s = min(keep_alive_s, self.keep_alive_s)
        for connection in list(self.connections):
            connection.hasten()

    def abort(self) -> None:
        """Cut every connection."""
        for connection in list(self.connections):
            connection.cut()
