"""Requests that wait in the router: for a first replica, or for one with room. Sends nothing.

One queue per model, first come, first served; models take turns. A queue goes on when a replica may be given its first
request: after a standing or a report has changed, or a request has ended.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from shoal_router.demand import Demand
from shoal_router.errors import NoReplicaReady, ReplicasFull, RouterDraining, RouterError
from shoal_router.models import ModelTable


class Waiter(Protocol):
    """A request that can go on or be refused. `waits_until_s` is 0 until it first waits."""

    started_s: float
    waits_until_s: float

    def attempt(self) -> None: ...

    def refuse(self, error: RouterError) -> None: ...


class Held:
    """All waiting requests. `queues`: by model, with the reason why each waits; a model without one is absent."""

    def __init__(self, models: ModelTable, demand: Demand, now: Callable[[], float]) -> None:
        self.queues: dict[str, OrderedDict[Waiter, RouterError]] = {}
        self._models = models
        self._demand = demand
        self._now = now
        self._releasing = self._closed = False

    def wait(self, waiter: Waiter, model: str, why: RouterError) -> None:
        """Let a request wait because of `why`, or refuse it."""
        until_s, places = self._terms(waiter, model, why)
        # Who has waited before keeps its place, in front: it came before all others.
        again = waiter.waits_until_s > 0
        crowded = not again and self._demand.of(self._models.family(model))[1] >= places
        if until_s <= self._now() or crowded:
            waiter.refuse(why)
            return
        if self._closed:
            waiter.refuse(_ending())
            return
        waiter.waits_until_s = until_s
        queue = self.queues.setdefault(model, OrderedDict())
        queue[waiter] = why
        if again:
            queue.move_to_end(waiter, last=False)
        self._demand.held(model, 1)

    def line_up(self, waiter: Waiter, model: str) -> None:
        """Let a request wait behind those that do already, or refuse it."""
        try:
            self._models.routable(model)
        except RouterError as error:
            self.wait(waiter, model, error)
        else:
            self.wait(waiter, model, self._models.full(model))

    def drop(self, waiter: Waiter, model: str) -> bool:
        """It waits no longer. Returns whether it did."""
        queue = self.queues.get(model)
        if queue is None or queue.pop(waiter, None) is None:
            return False
        self._demand.held(model, -1)
        if not queue:
            del self.queues[model]
        return True

    def changed(self) -> None:
        """Perhaps somebody may go on."""
        if self.queues and not self._releasing:
            self._releasing = True  # in a turn of its own: who reports the change is not done with it yet
            asyncio.get_running_loop().call_soon(self._release)

    def sweep(self) -> None:
        """Refuse who has waited for too long. What engines report may have made room for the others."""
        now = self._now()
        for model, queue in list(self.queues.items()):
            for waiter, why in list(queue.items()):
                if now >= waiter.waits_until_s:
                    late = NoReplicaReady(f"no replica of '{model}' became ready in time; try later")
                    self._refuse(waiter, model, why if isinstance(why, ReplicasFull) else late)
        self.changed()

    def close(self) -> None:
        """The router ends: nobody waits here any more, so that clients go to another one at once."""
        self._closed = True
        for model in list(self.queues):
            self._refuse_all(model, _ending())

    def _terms(self, waiter: Waiter, model: str, why: RouterError) -> tuple[float, int]:
        """Until when a request may wait, and how many may; a time that is over if it may not at all."""
        if isinstance(why, ReplicasFull):
            routing = self._models.routing(model)
            return waiter.waits_until_s or self._now() + routing.queue_s, routing.max_queued
        deployment = self._models.owner(model)
        if isinstance(why, NoReplicaReady) and deployment is not None and deployment.hold_s > 0:
            return max(waiter.waits_until_s, waiter.started_s + deployment.hold_s), deployment.max_held
        return 0.0, 0

    def _release(self) -> None:
        self._releasing = False
        models = list(self.queues)
        while models:
            models = [model for model in models if self._admit(model)]

    def _admit(self, model: str) -> bool:
        """Let the first of a queue go on if there is room for it. Returns whether the next may try."""
        try:
            room = any(endpoint.has_room for endpoint in self._models.routable(model))
        except NoReplicaReady:
            return False
        except RouterError as error:
            self._refuse_all(model, error)
            return False
        if not room:
            return False
        waiter = next(iter(self.queues[model]))
        self.drop(waiter, model)
        waiter.attempt()
        queue = self.queues.pop(model, None)
        if queue is None:
            return False
        self.queues[model] = queue  # the last in turn, next time
        return waiter not in queue

    def _refuse_all(self, model: str, error: RouterError) -> None:
        for waiter in list(self.queues.get(model, ())):
            self._refuse(waiter, model, error)

    def _refuse(self, waiter: Waiter, model: str, error: RouterError) -> None:
        if self.drop(waiter, model):
            waiter.refuse(error)


def _ending() -> RouterDraining:
    return RouterDraining("this router is shutting down and has not begun the request; send it again")
