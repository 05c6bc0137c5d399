"""Clients that are slow, endless, malformed or deaf, spoken to over bare sockets."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.engine.server.running import Running, serving, until
from tests.engine.server.scripted_engine import Script

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(Script(), header_deadline_s=0.5, body_deadline_s=0.5, body_bytes=100_000) as running:
        yield running


def connect(server: Running, receive_bytes: int | None = None) -> socket.socket:
    address = urlsplit(server.url)
    client = socket.socket()
    client.settimeout(20)
    if receive_bytes is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.connect((address.hostname, address.port))
    return client


def read_all(client: socket.socket) -> bytes:
    """What comes until the server closes."""
    data = b""
    try:
        while chunk := client.recv(1 << 16):
            data += chunk
    except ConnectionResetError:
        pass
    return data


def trickle(client: socket.socket, data: bytes) -> None:
    """One byte at a time until the server has had enough."""
    for byte in data:
        try:
            client.sendall(bytes([byte]))
        except OSError:
            return
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("sent", "slow"),
    [
        (b"", b"GET /health HTTP/1.1\r\nx-slow: " + b"a" * 1000),
        (HEAD + b"content-length: 1000\r\n\r\n", b'{"prompt": "' + b"a" * 1000),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 200),
    ],
    ids=["headers", "body", "chunks"],
)
def test_a_request_that_trickles_in_is_cut_off_and_harms_nobody(
    server: Running, sent: bytes, slow: bytes
) -> None:
    clients = [connect(server) for _ in range(20)]
    for client in clients:
        client.sendall(sent)
    trickle(clients[0], slow)
    assert server.complete(max_tokens=3).status_code == 200
    reply = read_all(clients[0])
    assert reply.startswith(b"HTTP/1.1 408 ") or reply == b""  # what was still being sent may cost the reply
    for client in clients[1:]:
        assert b"408" in read_all(client)[:16] or not sent


def test_a_connection_without_a_request_is_closed(server: Running) -> None:
    assert read_all(connect(server)) == b""


def test_a_keep_alive_connection_has_the_same_limits_each_time(server: Running) -> None:
    client = connect(server)
    client.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b"200 OK" in client.recv(4096)
    time.sleep(0.7)  # idle between two requests is not slow
    client.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b"200 OK" in client.recv(4096)
    client.sendall(b"GET /version HTTP/1.1\r\n")
    assert read_all(client).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"GET /health HTTP/1.1\r\nx: " + b"a" * 40_000, 431, "headers_too_large"),
        (
            b"GET /health HTTP/1.1\r\n" + b"x: aaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 1_400,
            431,
            "headers_too_large",
        ),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 34_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET /" + b"a" * 40_000, 431, "headers_too_large"),
        (b"\x00\x01\x02\r\n\r\n", 400, "malformed_http"),
        (b"GET / HTTP/9.9\r\n\r\n", 400, "malformed_http"),
        (HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "malformed_http"),
        (HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!", 400, "malformed_http"),
        (HEAD + b"content-length: -1\r\n\r\n", 400, "malformed_http"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\nxyz\r\n", 400, "malformed_http"),
        (b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n", 400, "malformed_http"),
    ],
)
def test_what_is_too_large_or_no_http_is_refused_with_a_typed_error(
    server: Running, data: bytes, status: int, code: str
) -> None:
    client = connect(server)
    client.sendall(data)
    head, _, body = read_all(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(body)["error"]["code"] == code
    assert head.count(b"HTTP/1.1") == 1


UPGRADE = HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest.mark.parametrize("cut", [10**6, 150, 60, 1])
def test_an_offer_to_upgrade_is_ignored_and_the_body_read(server: Running, cut: int) -> None:
    content = json.dumps({"prompt": [40], "max_tokens": 3}).encode()
    data = UPGRADE + b"content-length: %d\r\n\r\n" % len(content) + content
    client = connect(server)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(2):  # and the connection goes on
        for start in range(0, len(data), cut):
            client.sendall(data[start : start + cut])
        assert b"200 OK" in client.recv(4096)


@pytest.mark.parametrize(
    "data",
    [
        b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com\r\n\r\n",
        b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n" + UPGRADE + b"content-length: 2\r\n\r\n{}",
    ],
)
def test_no_other_protocol_is_spoken(server: Running, data: bytes) -> None:
    client = connect(server)
    client.sendall(data)
    assert b"malformed_http" in read_all(client)


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 100001\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n186a1\r\n" + b" " * 100_001 + b"\r\n",
    ],
)
def test_a_body_that_is_too_large_is_refused_before_it_is_read_on(server: Running, head: bytes) -> None:
    client = connect(server)
    client.sendall(HEAD + head)
    assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_never_reads_is_dropped_and_its_request_aborted() -> None:
    with serving(Script(max_model_len=10**6, step_s=0.005), slow_client_s=0.5) as server:
        client = connect(server, receive_bytes=4096)
        body = {"prompt": [[40]] * 20, "max_tokens": 900_000, "stream": True, "logprobs": 20}
        content = json.dumps(body).encode()
        client.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(content) + content)
        until(lambda: server.open_requests() == 20)
        neighbour = server.complete(max_tokens=50)
        assert neighbour.status_code == 200
        until(lambda: server.open_requests() == 0)
        assert server.metric("shoal:disconnect_aborts_total") == 1
        assert server.complete(max_tokens=50).json()["choices"] == neighbour.json()["choices"]
        client.close()
