"""moto's S3 on loopback, reached through a relay that notes requests, breaks connections and answers with faults."""

import http.client
import logging
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "models"


@dataclass
class ObjectStore:
    """`requests` are (method, path, Range, whether signed). Faults are used up in order, by requests for objects."""

    client: object
    host: str
    port: int
    url: str = ""
    statuses: list[int] = field(default_factory=list)
    break_after: list[int] = field(default_factory=list)  # bytes of the next bodies, then the connection ends
    deaf_to: set[str] = field(default_factory=set)  # headers that it takes no notice of
    requests: list[tuple[str, str, str | None, bool]] = field(default_factory=list)

    def put(self, files, folder="llama"):
        for name, data in files.items():
            self.client.put_object(Bucket=BUCKET, Key=f"{folder}/{name}".lstrip("/"), Body=data)

    def spans(self):
        """(file, Range) of every GET of an object."""
        return [
            (path.rpartition("/")[2], span)
            for method, path, span, _ in self.requests
            if method == "GET" and path.count("/") > 1
        ]


@contextmanager
def running():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    keys = {"aws_access_key_id": "owner", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **keys)
    client.create_bucket(Bucket=BUCKET)
    store = ObjectStore(client, host, port)
    relay = ThreadingHTTPServer(("127.0.0.1", 0), handler(store))
    relay.daemon_threads = True
    store.url = f"http://127.0.0.1:{relay.server_address[1]}"
    threading.Thread(target=relay.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield store
    finally:
        relay.shutdown()
        relay.server_close()
        http.client.HTTPConnection(host, port).request("POST", "/moto-api/reset")
        moto.stop()


def handler(store):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            signed = "Authorization" in self.headers
            store.requests.append((self.command, path, self.headers["Range"], signed))
            is_object = path.count("/") > 1
            if is_object and store.statuses:
                self.send_response(store.statuses.pop(0))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            upstream = http.client.HTTPConnection(store.host, store.port)
            heard = {key: value for key, value in self.headers.items() if key not in store.deaf_to}
            upstream.request(self.command, self.path, headers=heard)
            answer = upstream.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for key, value in answer.headers.items():
                if key.lower() not in ("connection", "server", "date", "transfer-encoding"):
                    self.send_header(key, value)
            self.end_headers()
            if is_object and store.break_after and self.command == "GET":
                self.wfile.write(body[: store.break_after.pop(0)])
                self.close_connection = True
            else:
                self.wfile.write(body)

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *args):
            pass

    return Handler
