"""The head of a replica's reply, as far as the router reads it. upstream.py receives it, replies.py passes it on."""

from __future__ import annotations

from typing import Final

from shoal_api.names import HEADER_NOT_STARTED

_NOT_STARTED: Final = HEADER_NOT_STARTED.encode()


class ReplyHead:
    """The head of a replica's reply; header names are in lower case.

    `chunked` bodies end themselves, `until_close` bodies end with the connection.
    """

    __slots__ = ("chunked", "event_stream", "headers", "status", "until_close")

    def __init__(
        self,
        status: int,
        headers: list[tuple[bytes, bytes]],
        content_type: bytes,
        chunked: bool,
        until_close: bool,
    ) -> None:
        self.status: Final = status
        self.headers: Final = headers
        self.event_stream: Final = content_type.lower().startswith(b"text/event-stream")
        self.chunked: Final = chunked
        self.until_close: Final = until_close

    @property
    def not_started(self) -> bool:
        """Whether an engine says that it has done nothing for the request."""
        return any(name == _NOT_STARTED for name, _ in self.headers)
