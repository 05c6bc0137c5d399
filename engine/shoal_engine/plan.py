"""What one step computes and what became of it, as values. Decides nothing."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from shoal_engine.request import Request


# gc=False: a step makes hundreds of these, none is part of a cycle, and tracking them wakes the collector.
class Chunk(msgspec.Struct, frozen=True, gc=False):
    """Compute tokens [start, start + count) of a request; if that reaches the last one, sample the next."""

    request: Request
    start: int
    count: int
    samples: bool


class Plan(msgspec.Struct, frozen=True):
    """One step. The first `num_decodes` chunks have one token each and sample; prompt chunks follow."""

    step: int
    chunks: tuple[Chunk, ...]
    num_decodes: int
    num_tokens: int
    num_samples: int  # chunks that sample
    preempted: tuple[str, ...]  # ids that lost their blocks since the plan before this one
    failed: tuple[Request, ...]  # ended with an error while planning: they fit in no cache of this size
    time_s: float  # the scheduler's clock when it was made


class Committed(NamedTuple):
    """What a step did. `advanced` gained the token `token_ids[-1]`; `finished` ended, with a token or not."""

    advanced: list[Request]
    finished: list[Request]
