"""Artifacts of a registry on loopback: names, digests, the anonymous token and its expiry."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from shoal_engine.sources.download import Download, Patience
from shoal_engine.sources.oci import Artifact
from shoal_engine.sources.progress import Progress
from shoal_engine.sources.remote import FetchError

FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000}


def digest(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def manifest(files, kind="application/octet-stream"):
    layers = [
        {
            "mediaType": kind,
            "digest": digest(data),
            "size": len(data),
            "annotations": {"org.opencontainers.image.title": name},
        }
        for name, data in files.items()
    ]
    return json.dumps({"schemaVersion": 2, "layers": layers}).encode()


@contextmanager
def registry(answers, uses_per_token=None, token_key="token"):
    """Serves `answers` by path. With `uses_per_token`: a token is needed, and is good for so many requests."""
    left = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            here = f"http://{self.headers['Host']}"
            if self.path.startswith("/token?service=s&scope=pull"):
                left[f"Bearer t{len(left)}"] = uses_per_token
                self.answer(200, json.dumps({token_key: f"t{len(left) - 1}"}).encode())
                return
            key = self.headers["Authorization"]
            if uses_per_token is not None:
                if not left.get(key):
                    self.answer(401, challenge=f'Bearer realm="{here}/token",service="s",scope="pull"')
                    return
                left[key] -= 1
            body = answers.get(self.path)
            self.answer(404 if body is None else 200, body or b"")

        def answer(self, status, body=b"", challenge=None):
            self.send_response(status)
            if challenge:
                self.send_header("WWW-Authenticate", challenge)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def answers(body, reference="latest"):
    blobs = {f"/v2/org/model/blobs/{digest(data)}": data for data in FILES.values()}
    return {f"/v2/org/model/manifests/{reference}": body, **blobs}


def load(uri, folder):
    Download(Artifact(uri), folder, Progress(), Patience(2, 0.001)).run()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("uses_per_token", [None, 100])
def test_layers_become_files(tmp_path, uses_per_token):
    with registry(answers(manifest(FILES)), uses_per_token) as host:
        assert load(f"oci://{host}/org/model", tmp_path) == FILES


def test_an_expired_token_is_replaced():
    with registry(answers(manifest(FILES)), uses_per_token=1) as host:
        source = Artifact(f"oci://{host}/org/model")
        assert {file.name: b"".join(source.read(file, 0)) for file in source.files()} == FILES


def test_a_token_service_that_gives_none(tmp_path):
    with (
        registry(answers(manifest(FILES)), 1, token_key="other") as host,
        pytest.raises(FetchError, match="no token"),
    ):
        load(f"oci://{host}/org/model", tmp_path)


def test_a_tag_and_a_digest_name_the_manifest(tmp_path):
    body = manifest(FILES)
    for reference, suffix in (("v1", ":v1"), (digest(body), f"@{digest(body)}")):
        with registry(answers(body, reference)) as host:
            assert load(f"oci://{host}/org/model{suffix}", tmp_path) == FILES


def test_another_manifest_than_the_digest_says_is_refused(tmp_path):
    wrong = digest(b"other")
    with registry(answers(manifest(FILES), wrong)) as host, pytest.raises(FetchError, match="this digest"):
        load(f"oci://{host}/org/model@{wrong}", tmp_path)


def test_a_container_image_is_refused_with_what_to_do(tmp_path):
    body = manifest({"model.safetensors": b"x"}, "application/vnd.oci.image.layer.v1.tar+gzip")
    with registry(answers(body)) as host, pytest.raises(FetchError, match=r"cache\.type Image"):
        load(f"oci://{host}/org/model", tmp_path)


@pytest.mark.parametrize("body", [b"[]", b"{}", b"no json", b'{"layers": 1}'])
def test_what_is_no_manifest_is_refused(tmp_path, body):
    with registry(answers(body)) as host, pytest.raises(FetchError):
        load(f"oci://{host}/org/model", tmp_path)
    with pytest.raises(FetchError, match="names no artifact"):
        Artifact("oci://registry")
