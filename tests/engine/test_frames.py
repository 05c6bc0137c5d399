from __future__ import annotations

import socket
import threading

import msgspec
import pytest

from shoal_engine.frames import MAX_FRAME_BYTES, FrameDecoder, FrameSocket, frame
from shoal_engine.messages import Abort, Stop, Submit, ToEngine
from shoal_engine.sampling_params import SamplingParams

MESSAGES = [
    Submit("7", [1, 2, 3], SamplingParams(logit_bias={5: 1.5}, seed=2**63 - 1, stop=("x",)), cache_salt="s"),
    Abort(["7", "8"]),
    Submit("8", list(range(70_000)), SamplingParams()),
    Stop(),
]


@pytest.mark.parametrize("chunk", [1, 3, 4, 1000, 10**9])
def test_messages_arrive_whole_however_the_bytes_are_cut(chunk: int) -> None:
    data = b"".join(map(frame, MESSAGES[:2] if chunk < 100 else MESSAGES))
    decoder = FrameDecoder[object](ToEngine)
    got = [message for i in range(0, len(data), chunk) for message in decoder.feed(data[i : i + chunk])]
    assert got == (MESSAGES[:2] if chunk < 100 else MESSAGES)


@pytest.mark.parametrize(
    "data",
    [
        (MAX_FRAME_BYTES + 1).to_bytes(4, "little"),
        b"\x01\x00\x00\x00\xc1",
        frame({"type": "submit", "id": 5}),
        frame({"type": "exec", "code": "1"}),
    ],
)
def test_a_malformed_frame_is_an_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(ValueError):
        FrameDecoder[object](ToEngine).feed(data)


def test_an_oversized_message_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        frame(msgspec.Raw(msgspec.msgpack.encode(bytes(MAX_FRAME_BYTES))))


def test_sending_does_not_wait_for_a_peer_that_has_a_hiccup() -> None:
    ours, theirs = socket.socketpair()
    link = FrameSocket[object](ours, ToEngine)
    message = Submit("1", list(range(60_000)), SamplingParams())
    for _ in range(5):
        link.send(message)  # more than the socket holds; the test's timeout is the assertion
    link.send(Stop())
    got: list[object] = []
    reader = threading.Thread(target=lambda: got.extend(_read_until_stop(theirs)))
    reader.start()
    link.close()
    reader.join(timeout=30)
    assert [type(each) for each in got] == [Submit] * 5 + [Stop]


def test_sending_waits_for_a_peer_that_has_stopped_reading() -> None:
    ours, theirs = socket.socketpair()
    link = FrameSocket[object](ours, ToEngine)
    message = Submit("1", list(range(60_000)), SamplingParams())
    sent: list[int] = []
    sender = threading.Thread(target=lambda: sent.extend(link.send(message) or i for i in range(40)))
    sender.start()
    sender.join(timeout=0.5)
    assert sender.is_alive()
    assert 0 < len(sent) < 20
    theirs.close()  # also what a dead parent looks like
    sender.join(timeout=30)
    assert not sender.is_alive()
    assert link.closed


def test_a_closed_peer_ends_the_link_and_not_the_process() -> None:
    ours, theirs = socket.socketpair()
    link = FrameSocket[object](ours, ToEngine)
    theirs.sendall(frame(Stop()))
    theirs.close()
    assert link.receive(wait=True) == [Stop()]
    assert link.receive(wait=True) == []
    assert link.closed
    link.send(Stop())
    link.close()


def _read_until_stop(sock: socket.socket) -> list[object]:
    decoder = FrameDecoder[object](ToEngine)
    got: list[object] = []
    while Stop() not in got:
        got += decoder.feed(sock.recv(1 << 16))
    return got
