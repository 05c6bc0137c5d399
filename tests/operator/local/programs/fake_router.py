"""A program with the router's command line that passes each request to the first endpoint that takes it.

    fake_router.py --endpoint URL ... --port PORT

Ready when one endpoint is; SIGTERM stops it listening, and it leaves when its running answers have ended.
"""

from __future__ import annotations

import argparse
import signal
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoint", action="append", default=[])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    options, _ = parser.parse_known_args()
    server = ThreadingHTTPServer((options.host, options.port), Handler)
    server.daemon_threads = False  # server_close waits for running answers: a drain
    Handler.endpoints = tuple(options.endpoint)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.02)
    server.server_close()


def _is_ready(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(endpoint + "/ready", timeout=5):
            return True
    except OSError:
        return False


class Handler(BaseHTTPRequestHandler):
    endpoints: tuple[str, ...] = ()

    def do_GET(self) -> None:
        if self.path == "/health":
            return self._answer(200, b"{}")
        if self.path == "/ready":
            ready = sum(map(_is_ready, self.endpoints))
            return self._answer(200 if ready else 503, b'{"replicas": %d}' % ready)
        return self._forward(None)

    def do_POST(self) -> None:
        return self._forward(self.rfile.read(int(self.headers["content-length"])))

    def _forward(self, body: bytes | None) -> None:
        for endpoint in self.endpoints:
            try:
                upstream = urllib.request.urlopen(endpoint + self.path, body, timeout=30)
            except OSError:
                continue
            self.send_response(200)
            self.send_header("x-shoal-replica", endpoint)
            self.end_headers()
            while chunk := upstream.read1():
                self.wfile.write(chunk)
                self.wfile.flush()
            return None
        return self._answer(503, b"{}")

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """No access log."""


if __name__ == "__main__":
    main()
