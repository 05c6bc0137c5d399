"""Keep a failure from the other requests: unpublish what may be spoilt, compute anew who has read it."""

from __future__ import annotations

from shoal_engine.errors import EngineError
from shoal_engine.queues import Queues
from shoal_engine.request import Request, Status
from shoal_engine.tables import BlockTables


def roll_back(queues: Queues, tables: BlockTables, step: int) -> None:
    """The oldest step in flight did not run to its end: nothing it or a later one wrote can be trusted."""
    tables.undo()
    for request in [request for request in queues.running if request.last_step >= step]:
        _again(queues, request)


def contain(queues: Queues, tables: BlockTables, request: Request, error: EngineError) -> bool:
    """The request's row of logits was bad (NaN). Ends it, or has it computed anew; True if it has ended.

    It may be the victim of another request whose blocks it reads and that has not sampled yet. Then it gets
    a second try on proven blocks only, and if that goes wrong too, it was its own fault.
    """
    victim = bool(request.trusted_blocks)
    spoilt = tables.forget_suspects(request)
    if victim:
        _again(queues, request)
    else:
        queues.end(request, "error", error)
    _requeue_readers(queues, tables, spoilt)
    return not victim


def _requeue_readers(queues: Queues, tables: BlockTables, spoilt: set[int]) -> None:
    for reader in list(queues.running):
        if reader.status is Status.RUNNING and not spoilt.isdisjoint(reader.block_ids):
            also_spoilt = tables.forget_suspects(reader)
            _again(queues, reader)
            _requeue_readers(queues, tables, also_spoilt)


def _again(queues: Queues, request: Request) -> None:
    request.num_failed_steps += 1
    queues.requeue(request)
