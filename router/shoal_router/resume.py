"""What it takes to go on with a broken-off stream on another replica. Pure; sends nothing.

The engine gives an opaque state in the head of the first reply and, in each event, a stage and the tokens behind
it. State, last stage, all tokens and the original body are what another engine of the same model needs to write
exactly the events that are missing.
"""

from __future__ import annotations

from array import array
from typing import Final

import msgspec

from shoal_api.names import HEADER_RESUME, RESUME_LINE
from shoal_router.errors import BadReply
from shoal_router.reply_head import ReplyHead
from shoal_router.request import Request

TOKENS: Final = b"tokens"
DONE: Final = b"done"
_STAGES: Final = frozenset((b"open", TOKENS, b"finish", b"usage", DONE))
_HEADER: Final = HEADER_RESUME.encode()


class Progress:
    """How far one stream has come. Four bytes per token."""

    __slots__ = ("ids", "stage", "state")

    def __init__(self, state: bytes) -> None:
        self.state = state  # as the newest replica gave it
        self.stage = b""  # of the last event; empty before the first
        self.ids: array[int] = array("I")

    @property
    def done(self) -> bool:
        return self.stage == DONE

    def read(self, line: bytes) -> None:
        """Take in the line of one event, `:shoal STAGE IDS`. Raises BadReply when it is no such line."""
        stage, _, ids = line[len(RESUME_LINE) :].partition(b" ")
        if stage not in _STAGES:
            raise BadReply("a stage of a resumable stream that this router does not know")
        try:
            if ids:
                self.ids.extend(array("I", map(int, ids.split(b"."))))
        except (ValueError, OverflowError):
            raise BadReply("token ids of a resumable stream that are none") from None
        self.stage = stage

    def line(self) -> bytes:
        """The header line that asks for the rest."""
        return b"%b: %b\r\n" % (_HEADER, self.state) if self.stage else b""


def rest_of(request: Request, progress: Progress) -> Request:
    """The request for what is missing of its stream."""
    if not progress.stage:
        return request  # the client has seen no event: a new answer will do
    ids = msgspec.json.encode(progress.ids.tolist())
    head = b'{"resume":{"stage":"%b","ids":%b,"cached_tokens":null},"request":' % (progress.stage, ids)
    rest = Request(request.head, b"%b%b}" % (head, request.body))
    rest.request_id = request.request_id
    rest.onward = request.onward
    return rest


def state_of(head: ReplyHead) -> bytes | None:
    """The state of a stream that can be resumed; None for any other reply.

    Only a stream that ends itself or with its connection: taking lines out changes its length.
    """
    if head.status != 200 or not (head.chunked or head.until_close) or not head.event_stream:
        return None
    return next((value for name, value in head.headers if name == _HEADER), None)
