"""Connections of clients: sockets, deadlines, order of replies.

What bytes mean is http1.py's, what to answer app.py's. A connection answers one request at a time. Requests
pipelined behind it wait in order while reading is paused; only then is a client that leaves not noticed
before something is written to it. Deadlines are absolute: a client that trickles bytes does not move them.
One sweep over all connections enforces them, so that a request costs no timer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Final, Protocol, cast

from shoal_router import replies
from shoal_router.errors import ReceiptTimeout, RouterBusy, RouterError
from shoal_router.http1 import Phase, RequestReader
from shoal_router.replies import Header
from shoal_router.request import Request

if TYPE_CHECKING:
    from shoal_router.listener import Listener

ALWAYS_RECEIVED: Final = 16 * 1024  # bytes of a body that are taken whatever others send


class Answering(Protocol):
    """Whoever is answering a connection's current request over time."""

    def client_lost(self) -> None:
        """The client is gone; nothing more can be written."""

    def client_blocked(self) -> None:
        """The client reads slower than the reply comes: write no more until `client_unblocked`."""

    def client_unblocked(self) -> None: ...


class ClientConnection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport
        self._reader = RequestReader(
            listener.settings.http,
            vet=listener.vet,
            deliver=self._deliver,
            refuse=self._deliver,
            send_continue=self._send_continue,
        )
        self._peer = ""  # the client's address
        self._waiting: deque[Request | RouterError] = deque()
        self._request: Request | None = None  # the one being answered
        self._answering: Answering | None = None
        self._phase = Phase.IDLE
        self._busy = self._closing = self._pumping = self._reading_paused = False
        self._deadline = inf
        self._blocked_since = inf
        self._receiving = 0  # bytes of an unfinished body, as the listener has them in its sum

    # What whoever answers a request may call.

    @property
    def closes_after_reply(self) -> bool:
        """Whether the head of the reply in progress has to say `connection: close`."""
        return self._request is None or not self._request.keep_alive or self._listener.draining

    def answered_by(self, answering: Answering) -> None:
        """Register who wants to hear of the client until `finish` or `abort`."""
        self._answering = answering
        if self._blocked_since != inf:
            answering.client_blocked()

    def reply(self, status: int, body: bytes, content_type: bytes, headers: tuple[Header, ...] = ()) -> None:
        """Send a whole reply and finish."""
        request = self._request
        head_only = request is not None and request.method == b"HEAD"
        close = self.closes_after_reply
        if request is not None and request.request_id:
            headers = (*headers, (b"x-request-id", request.request_id))
        self.write(replies.own_reply(status, body, content_type, headers, close=close, head_only=head_only))
        self._note(status)
        self.finish(close=close)

    def fail(self, error: RouterError) -> None:
        """Send an error as a whole reply and finish."""
        self._listener.count_error(error)
        self.reply(error.status, error.body(), replies.JSON, replies.error_headers(error))

    def write(self, data: bytes) -> None:
        """Send bytes of the reply in progress; of a connection that is just being lost, forget them."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def finish(self, *, close: bool) -> None:
        """The reply is complete; `close` when its head said so or its end is the end of the connection.

        A client that was not told may send its next request at once: that is still answered.
        """
        self._answering = self._request = None
        self._busy = False
        if close:
            self._close()
        elif self._waiting or self._pumping or self._closing or self._reading_paused:
            self._answer_waiting()
        else:
            self._arm()

    def abort(self) -> None:
        """Cut the connection and finish: the client must not take what it has for a whole reply."""
        self._answering = None
        self.cut()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        listener = self._listener
        self._deadline = listener.now() + listener.keep_alive_s
        name = transport.get_extra_info("peername")
        self._peer = str(name[0]) if name else ""
        if not listener.add(self, self._peer):
            self.cut()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._waiting.clear()
        self._listener.remove(self, self._peer)
        self._listener.receiving_bytes -= self._receiving
        self._receiving = 0
        answering, self._answering = self._answering, None
        if answering is not None:
            answering.client_lost()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return  # lingering: read and forget, so that the refusal is not lost to a reset
        self._reader.feed(data)
        phase = self._reader.phase
        if phase is Phase.BODY or self._receiving:
            self._count_unfinished()
        if phase is not self._phase:
            self._phase = phase
            if not self._busy:
                self._arm()

    def _count_unfinished(self) -> None:
        """Large bodies that come slowly are not to fill the memory, however many clients send them."""
        listener, unfinished = self._listener, self._reader.unfinished_bytes
        listener.receiving_bytes += unfinished - self._receiving
        self._receiving = unfinished
        if listener.receiving_bytes > listener.settings.max_receiving_bytes and unfinished > ALWAYS_RECEIVED:
            self._reader.give_up()
            listener.receiving_bytes -= unfinished
            self._receiving = 0
            self._deliver(RouterBusy("this router is receiving too much at once; send the request again"))

    def pause_writing(self) -> None:
        self._blocked_since = self._listener.now()
        if self._answering is not None:
            self._answering.client_blocked()

    def resume_writing(self) -> None:
        self._blocked_since = inf
        if self._answering is not None:
            self._answering.client_unblocked()

    # Deadlines

    def cut(self) -> None:
        """Cut the connection; whoever is answering hears that the client is lost."""
        self._closing = True
        self._transport.abort()

    def check_deadlines(self, now: float) -> None:
        """Called by the listener's sweep."""
        if now - self._blocked_since > self._listener.settings.stalled_client_s:
            self.cut()
        elif now > self._deadline:
            self._expire()

    def hasten(self) -> None:
        """The time to wait for a next request has become shorter."""
        if not self._busy and self._phase is Phase.IDLE:
            self._arm()

    def _arm(self) -> None:
        settings = self._listener.settings
        if self._phase is Phase.IDLE:
            timeout_s = self._listener.keep_alive_s
        else:
            timeout_s = settings.head_timeout_s if self._phase is Phase.HEAD else settings.body_timeout_s
        self._deadline = self._listener.now() + timeout_s

    def _expire(self) -> None:
        if self._closing:
            self.cut()
        elif self._phase is Phase.IDLE:
            self._close()
        else:
            what = "head" if self._phase is Phase.HEAD else "body"
            self._deliver(ReceiptTimeout(f"the request's {what} did not arrive in time; send it at once"))

    # The order of replies

    def _send_continue(self) -> None:
        # Behind another reply in progress it would stand in the middle of that; the client sends on after its
        # own wait.
        if not self._busy:
            self.write(replies.CONTINUE)

    def _deliver(self, item: Request | RouterError) -> None:
        if self._busy:
            self._waiting.append(item)
            self._pause_reading()
        elif not self._closing:
            self._begin(item)

    def _begin(self, item: Request | RouterError) -> None:
        self._busy = True
        self._deadline = inf
        if isinstance(item, RouterError):
            self._refuse(item)
            return
        self._request = item
        if item.refusal is not None:
            self.fail(item.refusal)
        else:
            self._listener.answer(item, self)

    def _answer_waiting(self) -> None:
        if self._pumping:
            return  # a reply that was finished at once, below in this loop
        self._pumping = True
        while self._waiting and not self._busy and not self._closing:
            self._begin(self._waiting.popleft())
        self._pumping = False
        if not self._busy and not self._closing:
            self._resume_reading()
            self._arm()

    def _refuse(self, error: RouterError) -> None:
        """Answer what cannot be read on from, then close."""
        self._listener.count_error(error)
        headers = replies.error_headers(error)
        self.write(
            replies.own_reply(error.status, error.body(), replies.JSON, headers, close=True, head_only=False)
        )
        self._note(error.status)
        self._closing = True
        self._resume_reading()
        self._deadline = self._listener.now() + self._listener.settings.linger_s
        if not self._transport.is_closing():
            self._transport.write_eof()

    def _note(self, status: int) -> None:
        """The router has answered by itself. What it proxied has a record, which ends elsewhere."""
        journal, request = self._listener.journal, self._request
        if journal is not None and (request is None or request.record is None):
            journal.own_reply(request, status)

    def _close(self) -> None:
        self._closing = True
        self._waiting.clear()
        self._deadline = self._listener.now() + self._listener.settings.stalled_client_s
        self._transport.close()

    def _pause_reading(self) -> None:
        if not self._reading_paused and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and not self._transport.is_closing():
            self._reading_paused = False
            self._transport.resume_reading()
