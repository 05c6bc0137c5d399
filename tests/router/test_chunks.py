"""Chunks cut by their sizes, against llhttp: whatever is taken as whole leaves the parser where it stood."""

from __future__ import annotations

import httptools
from hypothesis import example, given
from hypothesis import strategies as st

from shoal_router.chunks import chunk_at, whole_chunks

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Parsed:
    """A chunked body as llhttp reads it."""

    def __init__(self, data: bytes) -> None:
        self.body = b""
        self.complete = self.failed = False
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(HEAD)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.failed = True

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True

    def ends_here(self) -> bool:
        """Whether the next bytes are read as a chunk's size."""
        self._parser.feed_data(b"0\r\n\r\n")
        return self.complete


def ordinary(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


PIECES = st.one_of(
    st.binary(min_size=1, max_size=40).map(ordinary),
    st.binary(min_size=1, max_size=20).map(lambda body: b"%X\r\n%b\r\n" % (len(body), body)),
    st.sampled_from(
        [
            b"0\r\n\r\n",
            b"5;a=b\r\nhello\r\n",
            b"5\nhello\n",
            b"1\r\na",
            b"\r\n",
            b"-1\r\n",
            b"0000001\r\na\r\n",
        ]
    ),
    st.binary(max_size=8),
)


@given(st.lists(PIECES, max_size=5).map(b"".join))
@example(b"2\r\n\r\n\r\n")
@example(b"f" * 10_000)
def test_what_is_taken_as_whole_is_valid_and_leaves_the_parser_between_two_chunks(data: bytes) -> None:
    if not whole_chunks(data):
        return
    parsed = Parsed(data)
    assert not parsed.failed
    assert not parsed.complete
    body, at = b"", 0
    while at < len(data):
        start, stop = chunk_at(data, at)
        body += data[start:stop]
        at = stop + 2
    assert body == parsed.body
    assert parsed.ends_here()


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=4), st.data())
def test_ordinary_chunks_are_taken_and_nothing_less_than_all_of_one(
    bodies: list[bytes], data: st.DataObject
) -> None:
    framed = b"".join(map(ordinary, bodies))
    assert whole_chunks(framed)
    whole = {len(b"".join(map(ordinary, bodies[:count]))) for count in range(len(bodies) + 1)}
    cut = data.draw(st.integers(0, len(framed)))
    assert whole_chunks(framed[:cut]) == (cut in whole)
