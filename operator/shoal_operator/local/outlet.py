"""A standard stream that may vanish: a closed terminal or a reader that leaves ends the output, not the program."""

from __future__ import annotations

import os
from typing import TextIO


class Outlet:
    """Writes to `stream` until that fails, then nowhere. Everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._divert()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._divert()

    def _divert(self) -> None:
        # What the stream still holds goes to /dev/null, or the interpreter would fail to flush it at its end.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)

    @property
    def encoding(self) -> str:
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()
