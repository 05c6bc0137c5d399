"""How API process and engine process talk to their operator: lines for people on a terminal, one JSON
object per line elsewhere.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from typing import TextIO

_log = logging.getLogger(__name__)
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One line: time, level, event, and whatever was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        entry |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class PlainFormatter(logging.Formatter):
    """The event, then its facts: `ready  seconds=2.1`."""

    def format(self, record: logging.LogRecord) -> str:
        facts = [f"{key}={value}" for key, value in record.__dict__.items() if key not in _STANDARD]
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        line = "  ".join([f"{level}{record.getMessage()}", *facts])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up_logging(stream: TextIO = sys.stderr, level: int = logging.INFO) -> None:
    """Send all that the process has to say to `stream`, also what Python itself would print there.

    uvicorn's own news are ours to tell.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter() if stream.isatty() else JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: _log.critical("unexpected", exc_info=(kind, error, trace))
    threading.excepthook = lambda args: _log.error("a thread failed", exc_info=args.exc_value)
    sys.unraisablehook = lambda args: _log.error("ignored: %s", args.err_msg, exc_info=args.exc_value)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    logging.getLogger("uvicorn.access").disabled = True
