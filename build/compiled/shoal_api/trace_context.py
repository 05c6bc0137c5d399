"""W3C Trace Context: which trace a request belongs to, read from and written to its `traceparent`. Pure.

Spans are made elsewhere; this file knows only the ids that processes tell each other.
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED = 1
_RATIO_BITS = 56  # of a trace id that are random in every version of the standard


class TraceContext(NamedTuple):
    """A span of a trace, as its children see it. `span_id` 0 is the trace's beginning."""

    trace_id: int
    span_id: int
    sampled: bool

    @classmethod
    def parse(cls, traceparent: str) -> TraceContext | None:
        """What a header says; None when it says nothing valid."""
        found = _TRACEPARENT.fullmatch(traceparent.strip(" \t"))
        if found is None:
            return None
        version, trace_id, span_id, flags, further = found.groups()
        # A later version may say more at the end, version 0 may not, and 255 is none.
        if version == "ff" or (version == "00" and further) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & _SAMPLED))

    @classmethod
    def begin(cls, rng: random.Random, ratio: float) -> TraceContext:
        """A new trace, sampled in a share `ratio` of all cases; by its id, so that all agree."""
        trace_id = rng.getrandbits(128) or 1
        sampled = (trace_id & ((1 << _RATIO_BITS) - 1)) < ratio * (1 << _RATIO_BITS)
        return cls(trace_id, 0, sampled)

    def child(self, rng: random.Random) -> TraceContext:
        """A new span below this one."""
        return TraceContext(self.trace_id, rng.getrandbits(64) or 1, self.sampled)

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.sampled:02d}"
