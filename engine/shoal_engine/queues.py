"""Who waits and who runs, both in scheduling order. Whoever leaves the running gives back its blocks here."""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import pairwise
from operator import attrgetter

from shoal_engine.errors import EngineError
from shoal_engine.request import Request, Status
from shoal_engine.tables import BlockTables

MAX_PRIORITY_LEVELS = (
    32  # beyond it priorities differ only among requests of one step, so that nobody starves
)

_order = attrgetter("order")


class Queues:
    """One total order for both queues, fixed when a request arrives: (priority * ageing_steps + step, ...).

    A request that has waited `ageing_steps` longer therefore equals one that is one priority level better,
    and those who come later fall behind it for good. Because the last of the running is preempted and the
    first of the waiting admitted, the first of all only ever moves forward: everybody becomes first in the
    end.
    """

    def __init__(self, tables: BlockTables, ageing_steps: int) -> None:
        self.requests: dict[str, Request] = {}
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.num_waiting_tokens = 0
        self.num_uncached_tokens = 0  # of these, what the prefix cache did not hold when they came
        self._tables = tables
        self._ageing_steps = ageing_steps
        self._added = 0
        self._evicted: list[str] = []

    def add(self, request: Request, step: int) -> None:
        level = max(-MAX_PRIORITY_LEVELS, min(MAX_PRIORITY_LEVELS, request.priority))
        level -= request.num_given_tokens > 0  # it has waited elsewhere, and somebody has begun to read
        self._added += 1
        request.order = (level * self._ageing_steps + step, request.priority, request.arrival, self._added)
        self.requests[request.id] = request
        self._wait(request)

    def start(self, request: Request) -> None:
        """From waiting to running."""
        self._leave_waiting(request)
        request.status = Status.RUNNING
        insort(self.running, request, key=_order)

    def requeue(self, request: Request) -> None:
        """From running to waiting: blocks are given back, tokens are kept, results in flight are stale."""
        _remove(self.running, request)
        self._tables.release(request)
        self._evicted.append(request.id)
        self._wait(request)

    def end(self, request: Request, reason: str, error: EngineError | None = None) -> None:
        """From either queue out of the engine."""
        if request.status is Status.RUNNING:
            _remove(self.running, request)
        else:
            self._leave_waiting(request)
        self._tables.release(request)
        request.status = Status.FINISHED
        request.finish_reason = reason
        request.error = error
        del self.requests[request.id]

    def take_evicted(self) -> tuple[str, ...]:
        """Ids that were requeued since the last call."""
        evicted = tuple(self._evicted)
        self._evicted.clear()
        return evicted

    def check(self) -> None:
        """Raise RuntimeError if a request is in the wrong queue, out of order or miscounted."""
        for queue, status in ((self.running, Status.RUNNING), (self.waiting, Status.WAITING)):
            if any(request.status is not status for request in queue):
                raise RuntimeError(f"queues: a request that is not {status.value} is in that queue")
            if any(left.order >= right.order for left, right in pairwise(queue)):
                raise RuntimeError(f"queues: the {status.value} requests are out of order")
        if sorted(request.id for request in (*self.running, *self.waiting)) != sorted(self.requests):
            raise RuntimeError("queues: a request is in no queue or in two")
        if sum(len(request.token_ids) for request in self.waiting) != self.num_waiting_tokens:
            raise RuntimeError("queues: the waiting tokens are miscounted")
        if sum(request.num_uncached_tokens for request in self.waiting) != self.num_uncached_tokens:
            raise RuntimeError("queues: the waiting tokens that are not cached are miscounted")

    def _wait(self, request: Request) -> None:
        request.status = Status.WAITING
        self.num_waiting_tokens += len(request.token_ids)
        cached = len(self._tables.find_prefix(request)) * self._tables.block_tokens
        request.num_uncached_tokens = len(request.token_ids) - cached
        self.num_uncached_tokens += request.num_uncached_tokens
        insort(self.waiting, request, key=_order)

    def _leave_waiting(self, request: Request) -> None:
        _remove(self.waiting, request)
        self.num_waiting_tokens -= len(request.token_ids)
        self.num_uncached_tokens -= request.num_uncached_tokens


def _remove(queue: list[Request], request: Request) -> None:
    index = bisect_left(queue, request.order, key=_order)
    assert queue[index] is request
    del queue[index]
