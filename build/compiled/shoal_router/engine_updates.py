"""What an update that an engine pushes means: whether one was lost before it, and the load that it tells.

Pure; engine_link.py receives them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Self

from shoal_api import engine_state_pb2 as pb
from shoal_router.endpoints import Report


class Reading(Enum):
    """How an update is to be read."""

    ALL = auto()  # a snapshot: whatever was known before is replaced
    CHANGES = auto()
    GAP = auto()  # one before it was lost: only a snapshot helps


@dataclass(frozen=True, slots=True)
class Place:
    """How far a stream has been read."""

    epoch: int
    sequence: int

    @classmethod
    def of(cls, update: pb.Update) -> Self:
        return cls(update.epoch, update.sequence)


def reading(last: Place | None, update: pb.Update) -> Reading:
    """`last` is the place of the update before it in the same stream; None when it is the first."""
    if update.snapshot:
        return Reading.ALL
    if last is not None and Place.of(update) == Place(last.epoch, last.sequence + 1):
        return Reading.CHANGES
    return Reading.GAP


def report_of(load: pb.Load, before: Report) -> Report:
    """`before` with what the engine tells of its load and size."""
    return replace(
        before,
        running=load.running,
        waiting=load.waiting,
        kv_usage=load.kv_usage,
        kv_tokens=load.kv_capacity_tokens or before.kv_tokens,
        max_num_seqs=load.max_num_seqs or before.max_num_seqs,
        max_requests=load.max_requests or before.max_requests,
    )
