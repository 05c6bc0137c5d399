"""A program with the engine's command line and endpoints but no model: each of its lives follows a script.

    fake_engine.py SCRIPT.json --port=PORT ... MODEL

SCRIPT.json is a list of lives; the nth start at a port lives the nth, the last one for ever after. Keys of
a life, all optional: stderr (text printed at once), exit (code, after `exit_after_s` seconds), signal
(number, likewise), load_s (seconds until ready; null: never), stuck (whether loading shows no progress),
healthy (whether /health answers 200), deaf (whether SIGTERM is ignored), child (whether it starts a process
of its own that ignores SIGTERM). Each start appends "PORT PID" to SCRIPT.json.starts, and its child "PORT
PID child".
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

STREAM_CHUNKS = 20
STREAM_PERIOD_S = 0.1
STARTED_S = time.monotonic()


def main() -> None:
    script, arguments = Path(sys.argv[1]), sys.argv[2:]
    port = next(int(each[7:]) for each in arguments if each.startswith("--port="))
    life = _begin(script, port)
    print(f"arguments {json.dumps(arguments)}", flush=True)
    if "stderr" in life:
        print(life["stderr"], file=sys.stderr, flush=True)
    if "exit" in life or "signal" in life:
        if "exit_after_s" not in life:
            _end(life)
        threading.Timer(life["exit_after_s"], _end, (life,)).start()
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (Handler,), {"life": life}))
    server.daemon_threads = False  # server_close waits for running answers: a drain
    signal.signal(signal.SIGTERM, signal.SIG_IGN if life.get("deaf") else lambda *_: _stop(server))
    server.serve_forever(poll_interval=0.02)
    server.server_close()


def _begin(script: Path, port: int) -> dict[str, Any]:
    log = script.with_name(script.name + ".starts")
    lives: list[dict[str, Any]] = json.loads(script.read_text())
    before = sum(line.startswith(f"{port} ") and not line.endswith("child") for line in _read_lines(log))
    life = lives[min(before, len(lives) - 1)]
    _note(log, f"{port} {os.getpid()}")
    if life.get("child"):
        ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", ignore])
        _note(log, f"{port} {child.pid} child")
    return life


def _read_lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _note(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")


def _end(life: dict[str, Any]) -> None:
    if "signal" in life:
        os.kill(os.getpid(), life["signal"])
    os._exit(life["exit"])


def _stop(server: ThreadingHTTPServer) -> None:
    threading.Thread(target=server.shutdown).start()


class Handler(BaseHTTPRequestHandler):
    life: dict[str, Any]

    def do_GET(self) -> None:
        if self.path == "/health":
            return self._reply(200 if self.life.get("healthy", True) else 500, {})
        if self.path == "/ready":
            return self._ready()
        return self._reply(200, {"object": "list", "data": [{"id": "fake", "object": "model"}]})

    def do_POST(self) -> None:
        """STREAM_CHUNKS chunks, one each STREAM_PERIOD_S; without `"stream": true` one answer."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not body.get("stream"):
            return self._reply(200, {"pid": os.getpid()})
        self.send_response(200)
        self.end_headers()
        for number in range(STREAM_CHUNKS):
            self.wfile.write(f"data: {number}\n\n".encode())
            self.wfile.flush()
            time.sleep(STREAM_PERIOD_S)
        self.wfile.write(b"data: [DONE]\n\n")

    def _ready(self) -> None:
        load_s = self.life.get("load_s", 0.0)
        elapsed_s = time.monotonic() - STARTED_S
        if load_s is not None and elapsed_s >= load_s:
            return self._reply(200, {})
        done = 0 if self.life.get("stuck") else int(elapsed_s * 1e6)
        return self._reply(503, {"phase": "weights", "done": done, "total": int((load_s or 60) * 1e6)})

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """No access log."""


if __name__ == "__main__":
    main()
