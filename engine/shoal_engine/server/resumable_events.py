"""Events that say how far the stream has come, so that another engine can go on with it. The router takes that out again.

Before the data of each event stands a comment, `:shoal STAGE IDS`: what kind of event it is, and the tokens that were
consumed since the event before it, also those that had nothing to show. docs/api.md, "Streams that go on elsewhere".
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from shoal_api.names import HEADER_RESUME, RESUME_LINE
from shoal_engine.choice_text import Delta
from shoal_engine.server.events import Events
from shoal_engine.server.protocol import StreamOptions
from shoal_engine.server.replies import DONE
from shoal_engine.server.resume import Stage, State, encode_state
from shoal_engine.server.shape import Meter, Shape


class ResumableEvents(Events):
    """Of a stream with one choice. What the client has seen already, up to stage `seen`, is left out."""

    def __init__(
        self,
        shape: Shape,
        meter: Meter,
        options: StreamOptions | None,
        state: State,
        seen: Stage = Stage.NONE,
        last: Delta | None = None,
    ) -> None:
        """last: how the choice ends, when the tokens that the client has seen have ended it."""
        super().__init__(shape, meter, options)
        self._state = state
        self._seen = seen
        self._last = last
        self._ids: list[int] = []  # consumed since the last event

    def headers(self) -> list[tuple[bytes, bytes]]:
        state = self._state
        if state.cached_tokens is None:  # known by now, unless the first token lets wait for itself
            state = msgspec.structs.replace(state, cached_tokens=self._meter.cached_tokens)
        return [*super().headers(), (HEADER_RESUME.encode(), encode_state(state))]

    def opening(self) -> bytes:
        events = b"" if self._seen >= Stage.OPEN else super().opening()
        return self._line(Stage.OPEN) + events if events else b""

    def news(self, deltas: Iterable[tuple[int, Delta]]) -> bytes:
        events = b""
        for choice, delta in deltas:
            self._ids += delta.token_ids
            chunk = self._shape.chunk(choice, delta)
            if chunk is not None:
                stage = Stage.FINISH if delta.finish_reason else Stage.TOKENS
                events += self._line(stage) + self._chunk(chunk)
        return events

    def end(self) -> bytes:
        events = b"" if self._last is None else self.news([(0, self._last)])
        if self._seen < Stage.USAGE and (usage := self._usage()):
            events += self._line(Stage.USAGE) + usage
        return events if self._seen is Stage.DONE else events + self._line(Stage.DONE) + DONE

    def _line(self, stage: Stage) -> bytes:
        ids, self._ids = self._ids, []
        if len(ids) == 1:  # as most are
            return b"%b%d\n" % (_LINES[stage], ids[0])
        return b"%b%b\n" % (_LINES[stage], ".".join(map(str, ids)).encode())


_LINES = tuple(b"%b%b " % (RESUME_LINE, stage.word) for stage in Stage)
