"""uvicorn's connection with limits it lacks: how long and how large a request may arrive, how long a reply
may stay unread.

Nothing here waits: a timer or the sweep closes the connection, and the request's handler learns that its
client has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from typing import Any

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from shoal_engine.errors import EngineError, InvalidRequest
from shoal_engine.server.fault_replies import reply_of
from shoal_engine.server.limits import Limits
from shoal_engine.server.replies import encode

UNSENT_BYTES = 128 << 10
_SCOPE_KEY = "shoal.connection"
_UPGRADE = re.compile(rb"\r\nupgrade[ \t]*:", re.IGNORECASE)


class HeadersTooLarge(InvalidRequest):
    status = 431
    code = "headers_too_large"


class TooSlow(InvalidRequest):
    status = 408
    code = "request_timeout"


class Malformed(InvalidRequest):
    code = "malformed_http"


class Connection(HttpToolsProtocol):
    """One client's connection. `limits` is set by connection_type()."""

    limits: Limits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._head = b""  # what has been fed since the turn in which the message began
        self._begun = 0  # messages that have begun in it
        self._in_headers = False
        self._refusal: EngineError | None = None
        self._full_since_s: float | None = None

    # How the request arrives

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _keep_little_in_kernel(transport)
        self._expect(self.limits.header_deadline_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        self._unset_keepalive_if_required()
        if self._in_headers:
            self._head += data
        else:
            self._head, self._begun = data, 0
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._ignore_upgrade()
        except httptools.HttpParserError:
            self.send_400_response("")
        # A header without end reaches no callback: count what has been fed since the message began.
        if self._in_headers and len(self._head) > self.limits.header_bytes:
            self._refuse(HeadersTooLarge(f"The headers exceed {self.limits.header_bytes} bytes."))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._begun += 1
        self._expect(self.limits.header_deadline_s)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.header_bytes:
            self._refusal = HeadersTooLarge(f"The headers exceed {self.limits.header_bytes} bytes.")
            raise ValueError("refused")  # the parser stops here and has send_400_response called
        if self.parser.should_upgrade():
            return  # to begin again in _ignore_upgrade
        super().on_headers_complete()
        scope: Any = self.scope  # ASGI lets servers add keys of their own
        scope[_SCOPE_KEY] = self
        self._expect(self.limits.body_deadline_s)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._expect(None)
        super().on_message_complete()

    def _ignore_upgrade(self) -> None:
        """Take the request as if it had not offered another protocol, as RFC 9110 allows.

        Java's HttpClient offers h2c with every first request, and llhttp leaves the body of such a request alone.
        """
        head, end, rest = self._head.partition(b"\r\n\r\n")
        plain = _UPGRADE.sub(b"\r\nx-ignored-upgrade:", head)
        if self._begun != 1 or plain == head:  # it did not come first in its packet, or it is a CONNECT
            self._refuse(Malformed("Upgrading to another protocol is not supported here."))
            return
        self.parser = httptools.HttpRequestParser(self)
        self._in_headers = False
        self.data_received(plain + end + rest)

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or Malformed("This is not HTTP as RFC 9112 has it."))

    # How the reply leaves

    def pause_writing(self) -> None:
        self._full_since_s = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._full_since_s = None
        super().resume_writing()

    def sweep(self, now_s: float) -> bool:
        """Drop the connection if its reply has been waiting for its reader for too long; whether it was
        dropped.
        """
        if (
            self.transport.is_closing()
            and self._full_since_s is None
            and self.transport.get_write_buffer_size()
        ):
            self._full_since_s = now_s  # closing waits for the reader as well
        if self._full_since_s is None or now_s - self._full_since_s <= self.limits.slow_client_s:
            return False
        self.transport.abort()
        return True

    def close(self) -> None:
        """Close once everything written has left."""
        self.transport.close()

    def _expect(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = (
            None if seconds is None else self.loop.call_later(seconds, self._on_deadline, seconds)
        )

    def _on_deadline(self, seconds: float) -> None:
        answered = not self._in_headers and (self.cycle is None or self.cycle.response_started)
        if answered:
            self.transport.close()  # nothing was asked, or the answer is already out
        else:
            self._refuse(TooSlow(f"The request did not arrive within {seconds:.0f} s."))

    def _refuse(self, error: EngineError) -> None:
        """Answer in place of the application and close."""
        self._refusal = error
        if self.transport.is_closing():
            return
        body = encode(reply_of(error))
        fields = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(
            body
        )
        self.transport.write(STATUS_LINE[error.status] + fields + body)
        self.transport.close()


def _keep_little_in_kernel(transport: asyncio.Transport) -> None:
    """Megabytes of unread reply in the kernel's buffer would hide for long that nobody reads."""
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    peer = transport.get_extra_info("socket")
    if option is not None and peer is not None:
        with contextlib.suppress(OSError):  # not TCP
            peer.setsockopt(socket.IPPROTO_TCP, option, UNSENT_BYTES)


def connection_type(limits: Limits) -> type[Connection]:
    """The protocol class for uvicorn, which makes its instances itself."""
    return type("LimitedConnection", (Connection,), {"limits": limits})


def connection_of(scope: Scope) -> Connection | None:
    """The connection a request came in on; None under another server."""
    connection: Connection | None = scope.get(_SCOPE_KEY)
    return connection
