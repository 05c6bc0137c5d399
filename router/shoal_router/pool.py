"""Keep-alive connections to one replica: opened when there is none, closed before the replica does it.

What happens on a connection is upstream.py's.
"""

from __future__ import annotations

import asyncio
from typing import Final

from shoal_router.discovery import Address
from shoal_router.upstream import UpstreamConnection

MAX_IDLE_PER_REPLICA: Final = 512
# Below the 5 s after which uvicorn closes an idle connection: the router lets go first, so that no request
# meets a connection that is just being closed.
MAX_IDLE_S: Final = 4.0


class Pool:
    """Keep-alive connections to one replica. Last in, first out: the rest ages and is closed."""

    def __init__(self, address: Address, connect_timeout_s: float) -> None:
        self.address = address
        self._connect_timeout_s = connect_timeout_s
        self._idle: list[UpstreamConnection] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self._idle)

    def take(self, now: float) -> UpstreamConnection | None:
        """An idle connection, if there is one young enough."""
        while self._idle:
            connection = self._idle.pop()
            if now - connection.idle_since <= MAX_IDLE_S and connection.usable:
                return connection
            connection.close()
        return None

    async def connect(self, *, once: bool = False) -> UpstreamConnection:
        """A new connection.

        Raises OSError (TimeoutError included) when the replica does not accept one in time.
        """
        address = self.address
        connection = UpstreamConnection(None if once else self)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await asyncio.get_running_loop().create_connection(
                    lambda: connection, address.host, address.port
                )
        except BaseException:
            connection.close()  # it may have been made in the instant in which it was no longer wanted
            raise
        return connection

    def put(self, connection: UpstreamConnection) -> None:
        """Keep a connection whose reply has ended."""
        if self._closed or len(self._idle) >= MAX_IDLE_PER_REPLICA:
            connection.close()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)

    def discard(self, connection: UpstreamConnection) -> None:
        """Forget a connection that was lost."""
        if connection in self._idle:
            self._idle.remove(connection)

    def sweep(self, now: float) -> None:
        """Close connections that were idle for too long; the oldest come first in the list."""
        while self._idle and now - self._idle[0].idle_since > MAX_IDLE_S:
            self._idle.pop(0).close()

    def close(self) -> None:
        """Close idle connections, and the others after their reply."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()
