"""Length-prefixed msgpack frames on a stream socket: how messages.py travels. Knows bytes, not what they
mean.
"""

from __future__ import annotations

import select
import socket
import struct
from typing import Any, Generic, TypeVar

import msgspec

MAX_FRAME_BYTES = 64 << 20  # a million-token prompt is 5 MiB
_LENGTH = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()

Message = TypeVar("Message")


def frame(message: Any) -> bytes:
    """One message as bytes: its length as uint32, little-endian, then its msgpack."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {len(body)} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameDecoder(Generic[Message]):
    """Bytes in, whole messages of one type out."""

    def __init__(self, message_type: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(message_type)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes. Raises ValueError (msgspec's included): then drop the
        connection.
        """
        self._buffer += data
        messages = []
        start = 0
        while (body := start + _LENGTH.size) <= len(self._buffer):
            (size,) = _LENGTH.unpack_from(self._buffer, start)
            if size > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {size} bytes exceeds the limit of {MAX_FRAME_BYTES}")
            if body + size > len(self._buffer):
                break
            with memoryview(self._buffer)[body : body + size] as view:
                messages.append(self._decoder.decode(view))
            start = body + size
        del self._buffer[:start]
        return messages


class FrameSocket(Generic[Message]):
    """The engine's end: a hiccup of the other side does not make the engine's loop wait.

    What the socket does not take at once is kept and goes out with the next call. Only when MAX_BACKLOG_BYTES
    have piled up, send() waits: beyond that, steps would only lengthen a queue in front of every client.
    """

    MAX_BACKLOG_BYTES = 1 << 20

    def __init__(self, sock: socket.socket, message_type: Any) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._decoder = FrameDecoder[Message](message_type)
        self._backlog = bytearray()
        self.closed = False  # the peer is gone

    def send(self, message: Any) -> None:
        self._backlog += frame(message)
        self._flush()
        while len(self._backlog) > self.MAX_BACKLOG_BYTES and not self.closed:
            self._wait(select.POLLOUT)
            self._flush()

    def receive(self, *, wait: bool) -> list[Message]:
        """What has arrived; with `wait`, sleeps until something has or the peer is gone. Raises as
        FrameDecoder.feed.
        """
        self._flush()
        while wait and not self.closed:
            events = self._wait(select.POLLIN | (select.POLLOUT if self._backlog else 0))
            self._flush()
            if events & ~select.POLLOUT:
                break
        try:
            data = self._socket.recv(1 << 20)
        except BlockingIOError:
            return []
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
        return self._decoder.feed(data)

    def close(self) -> None:
        """Send what is left, waiting for the peer to take it, and close."""
        while self._backlog and not self.closed:
            self._wait(select.POLLOUT)
            self._flush()
        self._socket.close()

    def _flush(self) -> None:
        try:
            while self._backlog:
                del self._backlog[: self._socket.send(self._backlog)]
        except BlockingIOError:
            return
        except ConnectionError:
            self.closed = True
            self._backlog.clear()

    def _wait(self, events: int) -> int:
        """Sleep until one of `events` or the end of the connection; returns what happened."""
        poll = select.poll()
        poll.register(self._socket, events)
        return poll.poll()[0][1]
