"""GET something from a replica, for the router's own use: health, models, metrics.

Not on the path of any request.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from shoal_router.errors import BadReply
from shoal_router.pool import Pool
from shoal_router.reply_head import ReplyHead
from shoal_router.unchunk import Unchunker

MAX_BODY_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Fetched:
    status: int
    body: bytes


class _Collector:
    """A ReplySink that gathers one reply and wakes whoever awaits it."""

    def __init__(self) -> None:
        self.done: asyncio.Future[Fetched] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._pieces: list[bytes] = []
        self._take = self._pieces.append
        self._bytes = 0

    def reply_started(self, head: ReplyHead, body: bytes) -> None:
        self._status = head.status
        if head.chunked:
            self._take = Unchunker(self._pieces.append).feed
        self.reply_data(body)

    def reply_data(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._bytes > MAX_BODY_BYTES:
            self.reply_failed(BadReply(f"more than {MAX_BODY_BYTES} bytes"))
        else:
            self._take(data)

    def reply_ended(self) -> None:
        if not self.done.done():
            self.done.set_result(Fetched(self._status, b"".join(self._pieces)))

    def reply_failed(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


async def fetch(pool: Pool, path: str, timeout_s: float, api_key: str | None = None) -> Fetched:
    """One GET on a connection of its own. Raises OSError (TimeoutError, ConnectionError) or BadReply."""
    key = f"authorization: Bearer {api_key}\r\n" if api_key else ""
    head = f"GET {path} HTTP/1.1\r\nhost: {pool.address.authority}\r\n{key}connection: close\r\n\r\n"
    async with asyncio.timeout(timeout_s):
        connection = await pool.connect(once=True)
        try:
            collector = _Collector()
            connection.send(collector, head.encode(), b"")
            return await collector.done
        finally:
            connection.close()
