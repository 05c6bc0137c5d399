"""However a resumable stream is cut, by chunks, reads and deaths, its client gets the events of an undisturbed one."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_router.connection import ClientConnection
from shoal_router.errors import BadReply
from shoal_router.event_reader import MAX_EVENT_BYTES, EventReader
from shoal_router.listener import ConnectionSettings, Listener
from shoal_router.reply_head import ReplyHead
from shoal_router.request import Request
from shoal_router.resumable_relay import ResumableRelay
from shoal_router.resume import Progress
from tests.router.resumable_engine import DRAINING, ids_of, place_of, seen_by_client, with_line
from tests.router.resumed import STEPS, Body, cut
from tests.router.scripted import LAST_CHUNK, chunk

HEAD = ReplyHead(200, [(b"content-type", b"text/event-stream")], b"text/event-stream", True, False)


class Screen(asyncio.Transport):
    """The transport of a client that has asked, which keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False
        self.asked = 0  # requests that the router has begun to answer
        listener = Listener(
            ConnectionSettings(), vet=_nothing, answer=self._count, count_error=_nothing, now=lambda: 0.0
        )
        self.client = listener.make_connection()
        self.client.connection_made(self)
        self.ask()

    def ask(self) -> None:
        self.client.data_received(b"GET / HTTP/1.1\r\nhost: shoal\r\n\r\n")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def _count(self, request: Request, client: ClientConnection) -> None:
        self.asked += 1


def _nothing(_: object) -> None: ...


def relay_to(
    screen: Screen, *, http10: bool = False, head: ReplyHead = HEAD
) -> tuple[ResumableRelay, list[object]]:
    words: list[object] = []
    relay = ResumableRelay(screen.client, head, Progress(b"s"), words.append, http10=http10)
    relay.start(b"", b"")
    screen.written.clear()
    return relay, words


CUTS = st.lists(st.integers(0, 10_000), max_size=30)


@given(st.lists(st.tuples(CUTS, CUTS, st.integers(0, 5000)), max_size=4), CUTS, CUTS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_stream_of_any_chunks_reads_and_deaths_is_the_undisturbed_one(
    lives: list[tuple[list[int], list[int], int]], chunks: list[int], reads: list[int], http10: bool
) -> None:
    screen = Screen()
    relay, words = relay_to(screen, http10=http10)
    progress = relay.progress
    start = 0
    for in_chunks, in_reads, death in [*lives, (chunks, reads, 1_000_000)]:
        plain = b"".join(with_line(step) for step in STEPS[start:])
        body = b"".join(map(chunk, cut(plain, in_chunks))) + LAST_CHUNK
        for read in cut(body[:death], in_reads):
            relay.piece(read)
        if progress.done:
            break
        if progress.stage:
            start = place_of(STEPS, {"stage": progress.stage.decode(), "ids": progress.ids.tolist()})
        relay.follow(HEAD, b"s")
    relay.finish()
    sent = b"".join(screen.written)
    got = Body(sent) if not http10 else None
    assert (got.body if got else sent) == seen_by_client(STEPS)
    assert got is None or got.ended
    assert progress.ids.tolist() == ids_of(STEPS)
    screen.ask()
    assert screen.asked == 2, "the reply is over"
    assert not screen.closed
    assert not words


@pytest.mark.parametrize("http10", [False, True])
def test_death_at_every_byte_is_unseen(http10: bool) -> None:
    body = b"".join(chunk(with_line(step)) for step in STEPS) + LAST_CHUNK
    for death in range(len(body) + 1):
        screen = Screen()
        relay, _ = relay_to(screen, http10=http10)
        for at in range(0, death, 50):
            relay.piece(body[at : min(at + 50, death)])
        progress = relay.progress
        start = 0
        if progress.stage:
            start = place_of(STEPS, {"stage": progress.stage.decode(), "ids": progress.ids.tolist()})
        relay.follow(HEAD, b"s")
        for step in STEPS[start:]:
            relay.piece(chunk(with_line(step)))
        relay.finish()
        sent = b"".join(screen.written)
        assert (sent if http10 else Body(sent).body) == seen_by_client(STEPS), death


def test_a_token_in_a_read_of_its_own_is_one_write_of_one_chunk() -> None:
    screen = Screen()
    relay, _ = relay_to(screen)
    for step in STEPS:
        relay.piece(chunk(with_line(step)))
    assert screen.written == [chunk(event) for _, _, event in STEPS]


def test_comments_between_events_reach_the_client() -> None:
    screen = Screen()
    relay, words = relay_to(screen)
    relay.piece(
        chunk(with_line(STEPS[0])) + chunk(b": ping\n\n") + chunk(b": ping\n\n" + with_line(STEPS[1]))
    )
    assert Body(b"".join(screen.written)).body == STEPS[0][2] + b": ping\n\n" * 2 + STEPS[1][2]
    assert not words


def test_what_only_looks_like_a_line_inside_an_event_stays_in_it() -> None:
    screen = Screen()
    relay, _ = relay_to(screen)
    event = b'data: {"text":":shoal tokens 5\\n:shoal done "}\n\n'
    relay.piece(chunk(with_line(("tokens", [5], event))))
    relay.piece(chunk(with_line(("tokens", [6, 7], event))))
    assert Body(b"".join(screen.written)).body == event * 2
    assert relay.progress.ids.tolist() == [5, 6, 7]


def test_chunk_that_looks_whole_behind_half_an_event_belongs_to_that_event() -> None:
    screen = Screen()
    relay, words = relay_to(screen)
    relay.piece(chunk(b"data: half\n"))
    relay.piece(chunk(with_line(("tokens", [6], b"data: 1\n\n"))))
    assert (screen.written, words) == ([], [b"data: half\n:shoal tokens 6\ndata: 1\n\n"])


def test_chunk_that_looks_whole_behind_half_a_size_is_read_with_it() -> None:
    screen = Screen()
    relay, _ = relay_to(screen)
    for step in STEPS[:3]:
        relay.piece(b"0")  # a size may begin with zeros
        relay.piece(chunk(with_line(step)))
    assert Body(b"".join(screen.written)).body == seen_by_client(STEPS[:3])


def test_error_that_the_engine_writes_is_held_back_with_all_that_follows() -> None:
    screen = Screen()
    relay, words = relay_to(screen)
    relay.piece(chunk(with_line(STEPS[0]) + DRAINING + with_line(STEPS[1])))
    assert Body(b"".join(screen.written)).body == STEPS[0][2]
    assert words == [DRAINING]


@pytest.mark.parametrize("line", [b":shoal strange 1", b":shoal tokens 1.x", b":shoal tokens 1..2", b":shoal tokens -1",
                                  b":shoal tokens 4294967296", b":shoal tokens 9999999999", b":shoal "])  # fmt: skip
@pytest.mark.parametrize("reads", [1, 2])
def test_line_that_no_engine_writes_breaks_the_reply_behind_what_came_before(line: bytes, reads: int) -> None:
    screen = Screen()
    relay, words = relay_to(screen)
    whole = chunk(with_line(("tokens", [4, 5], b"data: 1\n\n"))) + chunk(line + b"\ndata: {}\n\n")
    for piece in cut(whole, [len(whole) - 9] * (reads - 1)):
        relay.piece(piece)
    assert [type(word) for word in words] == [BadReply]
    assert relay.progress.ids.tolist() == [4, 5]
    assert screen.written == [chunk(b"data: 1\n\n")]


def test_token_ids_up_to_32_bits_are_kept_in_four_bytes_each() -> None:
    progress = Progress(b"s")
    progress.read(b":shoal tokens 4294967295.0.1")
    assert progress.ids.tolist() == [4294967295, 0, 1]
    assert progress.ids.itemsize == 4


def test_event_without_an_end_takes_bounded_memory_and_time() -> None:
    reader = EventReader(Progress(b"s"), chunked=True)
    piece = chunk(b"x" * 65_536)
    for _ in range(MAX_EVENT_BYTES // 65_536):
        assert (reader.feed(piece), reader.last_word) == ([], None)
    reader.feed(piece)
    assert isinstance(reader.last_word, BadReply)


def test_unframed_reply_is_passed_on_unframed() -> None:
    screen = Screen()
    head = ReplyHead(200, [], b"text/event-stream", False, True)
    relay, _ = relay_to(screen, head=head)
    rng = random.Random(3)
    body = b"".join(map(with_line, STEPS))
    for piece in cut(body, [rng.randrange(len(body)) for _ in range(20)]):
        relay.piece(piece)
    relay.finish()
    assert b"".join(screen.written) == seen_by_client(STEPS)
    assert screen.closed
