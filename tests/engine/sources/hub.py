"""A small Hugging Face Hub on loopback, with a content server of another origin behind its redirects."""

import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "abcd"


@dataclass
class Hub:
    """What it holds and how it misbehaves. `requests` are (server, path, Range, Authorization)."""

    files: dict[str, bytes]
    token: str | None = None
    statuses: list[int] = field(default_factory=list)  # answered to the next requests for content
    break_after: list[int] = field(
        default_factory=list
    )  # bytes of the next contents, then the connection ends
    hold_after: int | None = None  # bytes, then no more until `released`
    corrupt: int = 0  # so many next contents have a wrong byte
    knows_range: bool = True
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    content_url: str = ""

    def contents(self) -> list[tuple[str, str | None]]:
        """(file, Range) of every request that reached the content server."""
        return [(path[1:], span) for server, path, span, _ in self.requests if server == "content"]


@contextmanager
def running(hub: Hub):
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler(hub, name)) for name in ("hub", "content")]
    hub.url, hub.content_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.released.set()
        for server in servers:
            server.shutdown()
            server.server_close()


def handler(hub: Hub, server: str):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((server, path, self.headers["Range"], self.headers["Authorization"]))
            if server == "content":
                self.content(path[1:])
            elif hub.token and self.headers["Authorization"] != f"Bearer {hub.token}":
                self.answer(401)
            elif path.startswith("/api/models/org/model/revision/"):
                self.answer(200, json.dumps(listing(hub.files)).encode())
            elif path.startswith(f"/org/model/resolve/{COMMIT}/"):
                self.answer(302, Location=f"{hub.content_url}/{path.split('/', 5)[5]}")
            else:
                self.answer(404)

        def content(self, name):
            if hub.statuses:
                self.answer(hub.statuses.pop(0))
                return
            data, start = hub.files[name], 0
            if hub.corrupt:
                hub.corrupt -= 1
                data = data[:-1] + bytes([data[-1] ^ 1])
            if hub.knows_range and (span := self.headers["Range"]):
                start = int(span.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            body = data[start:]
            if hub.hold_after is not None and len(body) > hub.hold_after:
                self.wfile.write(body[: hub.hold_after])
                self.wfile.flush()
                hub.released.wait(60)
                self.close_connection = True
            elif hub.break_after:
                self.wfile.write(body[: hub.break_after.pop(0)])
                self.close_connection = True
            else:
                self.wfile.write(body)

        def answer(self, status, body=b"", **headers):
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    return Handler


def listing(files):
    """Weights are large files with a sha256, texts are git blobs, as on the Hub."""
    siblings = []
    for name, data in files.items():
        one = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
        if name.endswith((".safetensors", ".gguf")):
            one["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        else:
            one["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        siblings.append(one)
    return {"sha": COMMIT, "siblings": siblings}
