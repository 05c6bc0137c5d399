"""What pods say of their loading: real HTTP on loopback, and pods that are slow, silent, gone or of another kind."""

import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_operator.loader_progress import BODY_BYTES, KEPT_S, LIMIT_S, PERIOD_S, LoaderProgress, download_of
from shoal_operator.world import Download, Replica


class Pod:
    """Answers with `body`, or when it is None holds the line until the end of the test."""

    def __init__(self, body, status=200):
        self.body, self.status, self.requests, self.released = body, status, [], threading.Event()


@contextmanager
def serving(pod, family=socket.AF_INET):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            pod.requests.append(self.path)
            if pod.body is None:
                pod.released.wait(30)
                return
            self.send_response(pod.status)
            self.send_header("Content-Length", str(len(pod.body)))
            self.end_headers()
            self.wfile.write(pod.body)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        address_family, daemon_threads = family, True

    server = Server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        pod.released.set()
        server.shutdown()
        server.server_close()


class Clock:
    def __init__(self):
        self.s = 1000.0

    def __call__(self):
        return self.s


def replica(name="a", **changes):
    fields = {"loading": True, "ip": "127.0.0.1", **changes}
    return Replica(name, f"uid-{name}", "1", "r", 0, 0.0, **fields)


def said(**changes):
    words = {"state": "Downloading", "bytes_total": 10_000, "bytes_done": 1000, "message": ""}
    return json.dumps(words | changes).encode()


async def test_a_loading_pod_is_asked_and_no_other():
    pod = Pod(said())
    with serving(pod) as port:
        seen = await LoaderProgress(port).read(
            [replica(), replica("b", loading=False), replica("c", ip=None)]
        )
    assert seen == (Download("a", "Downloading", 10_000, 1000),)
    assert pod.requests == ["/progress"]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
async def test_over_ipv6():
    with serving(Pod(said()), socket.AF_INET6) as port:
        assert await LoaderProgress(port).read([replica(ip="::1")])


async def test_a_pod_is_asked_once_per_period_and_its_word_is_kept_between():
    pod, clock = Pod(said()), Clock()
    with serving(pod) as port:
        progress = LoaderProgress(port, clock)
        first = await progress.read([replica()])
        clock.s += PERIOD_S - 0.1
        assert await progress.read([replica()]) == first
        assert len(pod.requests) == 1
        clock.s += 0.1
        await progress.read([replica()])
        assert len(pod.requests) == 2


async def test_the_rate_is_that_of_the_last_periods():
    pod, clock, rates = Pod(said(bytes_done=0)), Clock(), []
    with serving(pod) as port:
        progress = LoaderProgress(port, clock)
        for done in (0, 1000, 1000, 0):
            pod.body = said(bytes_done=done)
            (seen,) = await progress.read([replica()])
            rates.append(seen.bytes_per_s)
            clock.s += PERIOD_S
    assert rates == [None, 100.0, 50.0, None]


async def test_silent_pods_cost_one_limit_together_and_hide_no_other():
    silent, pod = Pod(None), Pod(said())
    with serving(silent) as port:
        progress = LoaderProgress(port)
        begun = time.monotonic()
        assert await progress.read([replica(name) for name in "abcde"]) == ()
        assert time.monotonic() - begun < 2 * LIMIT_S
        begun = time.monotonic()
        assert await progress.read([replica(name) for name in "abcde"]) == ()
        assert time.monotonic() - begun < LIMIT_S / 2  # they were asked a moment ago
    with serving(pod) as port:
        seen = await LoaderProgress(port).read([replica("x", ip="127.0.0.2"), replica("y")])
    assert [each.pod for each in seen] == ["y"]


async def test_a_pod_that_falls_silent_is_unknown_after_a_while():
    clock = Clock()
    with serving(Pod(said())) as port:
        progress = LoaderProgress(port, clock)
        assert await progress.read([replica()])
    clock.s += PERIOD_S
    assert await progress.read([replica()])
    clock.s += KEPT_S
    assert await progress.read([replica()]) == ()


@pytest.mark.parametrize(
    "pod",
    [
        Pod(b"<html>"),
        Pod(said(), 404),
        Pod(said(), 302),
        Pod(b"[]"),
        Pod(said(state="Sleeping")),
        Pod(said(bytes_done=-1)),
        Pod(said(bytes_done=True)),
        Pod(said(bytes_total=2**60)),
        Pod(b" " * BODY_BYTES + said()),
        Pod(b"\xff"),
        Pod(b"[" * 60_000),
    ],
)
async def test_another_answer_is_no_answer(pod):
    with serving(pod) as port:
        assert await LoaderProgress(port).read([replica()]) == ()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "state": st.sampled_from(["Downloading", "Ready"]) | json_values,
            "bytes_total": json_values,
            "bytes_done": json_values,
            "message": json_values,
        },
    )
    | json_values
)
def test_whatever_json_comes_is_a_download_or_a_value_error(answer):
    try:
        seen = download_of("a", answer)
    except ValueError:
        return
    assert seen.bytes_done is not None
    assert 0 <= seen.bytes_done <= 2**50
