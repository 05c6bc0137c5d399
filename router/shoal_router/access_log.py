"""One JSON line per request, written by a thread: a reader that is slow costs lines, never requests.

What is known of a request is record.py's.
"""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import BinaryIO, Final

import msgspec

from shoal_router.record import Record

log = logging.getLogger(__name__)

MOST_QUEUED: Final = 8192  # lines that wait for the thread


class AccessLog:
    """Writes to `stream` until `close`."""

    def __init__(self, stream: BinaryIO) -> None:
        self.dropped = 0
        self._stream = stream
        self._queue: SimpleQueue[tuple[Record, float, float] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="access-log", daemon=True)
        self._thread.start()

    def put(self, record: Record, ended_s: float, ended_at: float) -> None:
        """A request is over: `ended_s` on the journal's clock, `ended_at` in seconds of the epoch."""
        if self._queue.qsize() < MOST_QUEUED:
            self._queue.put((record, ended_s, ended_at))
        else:
            self.dropped += 1

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued and end the thread."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        if self.dropped:
            log.warning("the access log lost %d lines: its reader was too slow", self.dropped)

    def _write(self) -> None:
        try:
            while (item := self._queue.get()) is not None:
                self._stream.write(line(*item))
                self._stream.flush()  # one write per line, so that those of several processes do not mix
        except (OSError, ValueError) as error:  # its reader is gone, or the stream is closed
            log.warning("the access log ends: %s", error)


def line(record: Record, ended_s: float, ended_at: float) -> bytes:
    """The line of one request, with its end."""
    request, usage, first_byte_s = record.request, record.usage, record.first_byte_s
    context = record.context
    fields = {
        "time": datetime.fromtimestamp(ended_at, UTC).isoformat(timespec="milliseconds"),
        "request_id": request.request_id.decode("latin-1") if request else "",
        "method": request.method.decode("latin-1") if request else "",
        "path": request.path if request else "",
        "model": record.model,
        "tenant": request.tenant if request else "",
        "replica": record.replica,
        "status": record.status,
        "duration_s": round(ended_s - record.began_s, 6),
        "first_byte_s": round(first_byte_s - record.began_s, 6) if first_byte_s else None,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "cached_tokens": usage.cached_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
        "stream": record.stream,
        "retries": record.retries,
        "resumes": record.resumes,
        "trace_id": f"{context.trace_id:032x}" if context and context.sampled else None,
    }
    return msgspec.json.encode(fields) + b"\n"
